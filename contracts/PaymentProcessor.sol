// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.20;

/// A payment processor in the Operational Accounts Pattern. Users deposit native value and ask
/// for a charge; operator accounts, which hold no money of users, execute what was asked for.
///
/// The contract protects itself: one charge per order id, of exactly the amount that was
/// requested, out of the deposit of the payer who requested it, to a merchant that cannot be
/// changed. A stolen operator key can therefore only bring forward what users asked for.
contract PaymentProcessor {
    struct Charge {
        address payer;
        uint256 amount;
        bool executed;
    }

    bytes32 public constant ADMIN_ROLE = keccak256("ADMIN_ROLE");
    bytes32 public constant OPERATOR_ROLE = keccak256("OPERATOR_ROLE");

    /// Receives what is charged. Fixed for ever, so that no role can redirect payments.
    address public immutable merchant;

    /// Deposits of payers and charged amounts of the merchant, in wei, not yet withdrawn.
    mapping(address account => uint256) public balances;

    mapping(uint256 orderId => Charge) private _charges;
    mapping(bytes32 role => mapping(address account => bool)) private _roles;

    event Deposited(address indexed payer, uint256 amount);
    event Withdrawn(address indexed account, uint256 amount);
    event ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount);
    event ChargeExecuted(uint256 indexed orderId, address indexed operator, uint256 amount);
    event RoleGranted(bytes32 indexed role, address indexed account, address indexed sender);
    event RoleRevoked(bytes32 indexed role, address indexed account, address indexed sender);

    error MissingRole(bytes32 role, address account);
    error ZeroAddress();
    error ZeroAmount();
    error AlreadyRequested(uint256 orderId);
    error NotRequested(uint256 orderId);
    error AlreadyExecuted(uint256 orderId);
    error AmountMismatch(uint256 orderId, uint256 requested, uint256 given);
    error InsufficientDeposit(address payer, uint256 available, uint256 needed);
    error LastAdmin();
    error TransferFailed(address to, uint256 amount);

    uint256 private _admins;

    modifier onlyRole(bytes32 role) {
        if (!_roles[role][msg.sender]) revert MissingRole(role, msg.sender);
        _;
    }

    constructor(address merchant_, address admin_) {
        if (merchant_ == address(0) || admin_ == address(0)) revert ZeroAddress();
        merchant = merchant_;
        _grant(ADMIN_ROLE, admin_);
    }

    // Users.

    function deposit() external payable {
        if (msg.value == 0) revert ZeroAmount();
        balances[msg.sender] += msg.value;
        emit Deposited(msg.sender, msg.value);
    }

    /// Asks that `amount` wei of the caller's deposit be paid for `orderId`, once. The deposit is
    /// checked when the charge is executed, so that it may arrive after the request.
    function requestCharge(uint256 orderId, uint256 amount) external {
        if (amount == 0) revert ZeroAmount();
        if (_charges[orderId].payer != address(0)) revert AlreadyRequested(orderId);
        _charges[orderId] = Charge({payer: msg.sender, amount: amount, executed: false});
        emit ChargeRequested(orderId, msg.sender, amount);
    }

    /// Pays out the caller's own balance: a payer's rest, or what the merchant has earned.
    function withdraw(uint256 amount) external {
        if (amount == 0) revert ZeroAmount();
        _debit(msg.sender, amount);
        emit Withdrawn(msg.sender, amount);
        (bool ok,) = msg.sender.call{value: amount}("");
        if (!ok) revert TransferFailed(msg.sender, amount);
    }

    // Operators.

    /// Executes a requested charge. The amount is named again so that an operator signs what it
    /// moves, and a call that was built from another event than the recorded one fails.
    function executeCharge(uint256 orderId, uint256 amount) external onlyRole(OPERATOR_ROLE) {
        Charge storage charge = _charges[orderId];
        address payer = charge.payer;
        if (payer == address(0)) revert NotRequested(orderId);
        if (charge.executed) revert AlreadyExecuted(orderId);
        if (charge.amount != amount) revert AmountMismatch(orderId, charge.amount, amount);
        charge.executed = true;
        _debit(payer, amount);
        balances[merchant] += amount;
        emit ChargeExecuted(orderId, msg.sender, amount);
    }

    // Administration: replacing an operator is grantOperator(new), then revokeOperator(old).

    function grantOperator(address account) external onlyRole(ADMIN_ROLE) {
        _grant(OPERATOR_ROLE, account);
    }

    function revokeOperator(address account) external onlyRole(ADMIN_ROLE) {
        _revoke(OPERATOR_ROLE, account);
    }

    function grantAdmin(address account) external onlyRole(ADMIN_ROLE) {
        _grant(ADMIN_ROLE, account);
    }

    function revokeAdmin(address account) external onlyRole(ADMIN_ROLE) {
        if (_roles[ADMIN_ROLE][account] && _admins == 1) revert LastAdmin();
        _revoke(ADMIN_ROLE, account);
    }

    // Views.

    function operators(address account) external view returns (bool) {
        return _roles[OPERATOR_ROLE][account];
    }

    function admins(address account) external view returns (bool) {
        return _roles[ADMIN_ROLE][account];
    }

    /// The amount that was requested for an order id, in wei; 0 if there was no request.
    function requested(uint256 orderId) external view returns (uint256) {
        return _charges[orderId].amount;
    }

    /// Who requested the charge; the zero address if nobody did.
    function payerOf(uint256 orderId) external view returns (address) {
        return _charges[orderId].payer;
    }

    /// How often a charge was executed: 0 or 1.
    function executions(uint256 orderId) external view returns (uint256) {
        return _charges[orderId].executed ? 1 : 0;
    }

    function _debit(address account, uint256 amount) private {
        uint256 available = balances[account];
        if (available < amount) revert InsufficientDeposit(account, available, amount);
        balances[account] = available - amount;
    }

    /// Granting what is held already changes nothing and emits nothing.
    function _grant(bytes32 role, address account) private {
        if (account == address(0)) revert ZeroAddress();
        if (_roles[role][account]) return;
        _roles[role][account] = true;
        if (role == ADMIN_ROLE) _admins += 1;
        emit RoleGranted(role, account, msg.sender);
    }

    function _revoke(bytes32 role, address account) private {
        if (!_roles[role][account]) return;
        _roles[role][account] = false;
        if (role == ADMIN_ROLE) _admins -= 1;
        emit RoleRevoked(role, account, msg.sender);
    }
}
