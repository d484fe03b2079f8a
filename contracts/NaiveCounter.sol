// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.20;

/// Does NOT protect itself against being called twice: every call counts, and every payment pays.
/// Tests use it to see on chain whether the server executed a request more than once.
contract NaiveCounter {
    mapping(uint256 id => uint256) public hits;
    uint256 public total;

    mapping(uint256 id => uint256) public payments;
    uint256 public paid;

    event Hit(uint256 indexed id, address indexed caller, uint256 hits);
    event Poke(uint256 indexed id, address indexed caller, uint256 amount);
    event Funded(address indexed from, uint256 amount);
    event Paid(uint256 indexed id, address indexed to, uint256 amount);

    function hit(uint256 id) external {
        uint256 count = hits[id] + 1;
        hits[id] = count;
        total += 1;
        emit Hit(id, msg.sender, count);
    }

    function poke(uint256 id, uint256 amount) external {
        emit Poke(id, msg.sender, amount);
    }

    function fund() external payable {
        emit Funded(msg.sender, msg.value);
    }

    /// Moves money on each call, from what came with the call and from what was funded before.
    function pay(uint256 id, address payable to, uint256 amount) external payable {
        payments[id] += 1;
        paid += amount;
        emit Paid(id, to, amount);
        (bool ok,) = to.call{value: amount}("");
        require(ok, "payment failed");
    }

    /// Always reverts with the given reason.
    function boom(string calldata reason) external pure {
        revert(reason);
    }
}
