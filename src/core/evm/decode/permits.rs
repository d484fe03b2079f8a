//! Typed data that moves value, recognised by type hash: who may take what, as effects.
//!
//! Sources: EIP-2612, DAI's `permit`, Permit2 (`AllowanceTransfer`, `SignatureTransfer` with and without
//! witness), EIP-3009, Seaport's `OrderComponents` (1.2 and later).
//!
//! The domain's contract must be what the bundle says: the asset itself, or a contract of the book that is
//! bound as Permit2 or Seaport. What is known by its name to move value and is not one of these to the last
//! field is opaque. So is Safe's `SafeTx`, always: it has no end and anybody may execute it at any time, so no
//! window could ever let go of what it moves, and no fee, wait or expiry of a grant would hold for it.

use super::assets::{allowance, operator, token};
use super::calls::EFFECTS_MAX;
use super::known::Fields;
use super::opaque;
use super::typed_data::{self, Strict};
use crate::core::amount::Amount;
use crate::core::id::ChainName;
use crate::core::intent::ChainRef;
use crate::core::policy::Bundle;
use crate::core::policy::bundle::registry::{Registry, Standard, Wrapper};
use crate::core::policy::effect::{ApprovalForm, Effect, PermitTerms};
use alloy::dyn_abi::{DynSolValue, TypedData};
use alloy::primitives::{Address, B256, U256, b256};

/// What is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Permit,
    DaiPermit,
    PermitSingle,
    PermitBatch,
    PermitTransferFrom,
    PermitBatchTransferFrom,
    TransferWithAuthorization,
    ReceiveWithAuthorization,
    CancelAuthorization,
    OrderComponents,
}

/// keccak-256 of each full `encodeType`, which is beside it in the tests.
const FORMS: [(Form, B256); 10] = [
    (Form::Permit, b256!("0x6e71edae12b1b97f4d1f60370fef10105fa2faae0126114a169c64845d6126c9")),
    (Form::DaiPermit, b256!("0xea2aa0a1be11a07ed86d755c93467f4f82362b452371d1ba94d1715123511acb")),
    (
        Form::PermitSingle,
        b256!("0xf3841cd1ff0085026a6327b620b67997ce40f282c88a8e905a7a5626e310f3d0"),
    ),
    (
        Form::PermitBatch,
        b256!("0xaf1b0d30d2cab0380e68f0689007e3254993c596f2fdd0aaa7f4d04f79440863"),
    ),
    (
        Form::PermitTransferFrom,
        b256!("0x939c21a48a8dbe3a9a2404a1d46691e4d39f6583d6ec6b35714604c986d80106"),
    ),
    (
        Form::PermitBatchTransferFrom,
        b256!("0xfcf35f5ac6a2c28868dc44c302166470266239195f02b0ee408334829333b766"),
    ),
    (
        Form::TransferWithAuthorization,
        b256!("0x7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"),
    ),
    (
        Form::ReceiveWithAuthorization,
        b256!("0xd099cc98ef71107a616c4f0f941f04c322d8e254fe26b3c6668db87aae413de8"),
    ),
    (
        Form::CancelAuthorization,
        b256!("0x158b0a9edf7a828aad02f63cd515c68ef2f50ba807396f6d12842833a1597429"),
    ),
    (
        Form::OrderComponents,
        b256!("0xfa445660b7e21515a59617fcd68910b487aa5808b8abda3d78bc85df364b2c2f"),
    ),
];

/// Permits whose last field is whatever the spender wants to be signed with them.
const WITNESS: [(&str, Form); 2] = [
    ("PermitWitnessTransferFrom", Form::PermitTransferFrom),
    ("PermitBatchWitnessTransferFrom", Form::PermitBatchTransferFrom),
];

/// What a Safe's owners sign, by any version's fields.
const SAFE_TX: &str = "SafeTx";
const SIGNED_SAFE_TX: &str =
    "a signed SafeTx has no end, and anybody may execute it: send execTransaction instead";

const INCOMPLETE: &str = "the message does not fit its types";

/// What is being read, and for whom.
struct Ask<'a> {
    registry: &'a Registry,
    chain: &'a ChainName,
    /// The account that would sign.
    from: Address,
    /// The domain's contract.
    contract: Address,
}

/// The effects of typed data; never empty.
pub(super) fn read(
    bundle: &Bundle,
    chain: &ChainRef,
    data: &TypedData,
    from: Address,
) -> Vec<Effect> {
    let strict = match typed_data::strict(chain, data) {
        Ok(strict) => strict,
        Err(why) => return vec![opaque(&why)],
    };
    let Some(form) = recognise(&strict, &data.primary_type) else {
        return vec![match strict.moved_by_name() {
            Some(_) if data.primary_type == SAFE_TX => opaque(SIGNED_SAFE_TX),
            Some(why) => opaque(&why),
            None => Effect::TypedMessage {
                type_hash: strict.type_hash,
                primary_type: data.primary_type.clone(),
                verifying_contract: strict.verifying_contract,
            },
        }];
    };
    let contract = strict.verifying_contract;
    let ask = Ask { registry: bundle.registry(), chain: &chain.name, from, contract };
    let read = Fields::of(&strict.value).and_then(|fields| ask.effects(form, fields));
    match read.unwrap_or_else(|| Err(INCOMPLETE.to_owned())) {
        Ok(effects) if effects.is_empty() => vec![opaque("it permits nothing at all")],
        Ok(effects) if effects.len() > EFFECTS_MAX => {
            vec![opaque(&format!("it has more than {EFFECTS_MAX} effects"))]
        }
        Ok(effects) => effects,
        Err(why) => vec![opaque(&why)],
    }
}

fn recognise(strict: &Strict, primary_type: &str) -> Option<Form> {
    let exact = FORMS.iter().find(|(_, hash)| *hash == strict.type_hash);
    if let Some((form, _)) = exact {
        return Some(*form);
    }
    // A witness may be of any type: so the fields before it are compared, and that one field follows.
    let (_, form) = WITNESS.iter().find(|(name, _)| *name == primary_type)?;
    let permitted = match form {
        Form::PermitTransferFrom => "TokenPermissions",
        _ => "TokenPermissions[]",
    };
    let before = [
        ("permitted", permitted),
        ("spender", "address"),
        ("nonce", "uint256"),
        ("deadline", "uint256"),
    ];
    let is = |name: &str, fields: &[(&str, &str)], more: usize| {
        strict.types.get(name).is_some_and(|declared| {
            declared.len() == fields.len().saturating_add(more)
                && fields
                    .iter()
                    .zip(declared)
                    .all(|(field, (name, kind))| field.0 == name && field.1 == kind)
        })
    };
    let fits = is(primary_type, &before, 1)
        && is("TokenPermissions", &[("token", "address"), ("amount", "uint256")], 0);
    fits.then_some(*form)
}

type Read<T> = Option<Result<T, String>>;

/// Of a value of Solidity's `uint256` that is a moment: `None` if it never comes.
fn moment(seconds: U256) -> Option<u64> {
    u64::try_from(seconds).ok()
}

/// Takes the value out of an `Ok`; returns an error to the caller as read.
macro_rules! known {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(why) => return Some(Err(why)),
        }
    };
}

impl Ask<'_> {
    /// The domain's contract must be bound as this.
    fn bound(&self, wrapper: Wrapper) -> Result<(), String> {
        let contract = self.registry.contract_at(self.chain, self.contract);
        if contract.and_then(|contract| contract.wraps) == Some(wrapper) {
            return Ok(());
        }
        let (name, contract) = (wrapper.name(), self.contract);
        Err(format!("the domain's contract {contract} is not bound as `{name}` in the book"))
    }

    /// Only what the signing account owns is permitted by its signature.
    fn own(&self, owner: Address) -> Result<(), String> {
        if owner == self.from {
            return Ok(());
        }
        Err(format!("it is a permit of {owner}, not of the account that would sign"))
    }

    fn effects(&self, form: Form, mut fields: Fields<'_>) -> Read<Vec<Effect>> {
        match form {
            Form::Permit => one(self.permit(&mut fields)?),
            Form::DaiPermit => one(self.dai_permit(&mut fields)?),
            Form::TransferWithAuthorization | Form::ReceiveWithAuthorization => {
                one(self.transfer_authorization(&mut fields)?)
            }
            Form::CancelAuthorization => one(self.cancel_authorization(&mut fields)?),
            Form::PermitSingle | Form::PermitBatch => self.permit2_allowance(form, &mut fields),
            Form::PermitTransferFrom | Form::PermitBatchTransferFrom => {
                self.permit2_transfer(form, &mut fields)
            }
            Form::OrderComponents => self.order(&mut fields),
        }
    }

    /// `owner spender value nonce deadline`.
    fn permit(&self, fields: &mut Fields<'_>) -> Read<Effect> {
        let (owner, spender, value) = (fields.address()?, fields.address()?, fields.uint()?);
        let (nonce, deadline) = (fields.uint()?, moment(fields.uint()?));
        let terms = self.terms(nonce, deadline, None);
        let amount = allowance(value, 256);
        Some(self.approve(self.contract, owner, spender, amount, ApprovalForm::Permit, terms))
    }

    /// `holder spender nonce expiry allowed`; an expiry of 0 is none.
    fn dai_permit(&self, fields: &mut Fields<'_>) -> Read<Effect> {
        let (holder, spender, nonce) = (fields.address()?, fields.address()?, fields.uint()?);
        let (expiry, allowed) = (fields.uint()?, fields.flag()?);
        let deadline = moment(expiry).filter(|at| *at != 0);
        let terms = self.terms(nonce, deadline, None);
        let amount = Amount::new(if allowed { U256::MAX } else { U256::ZERO });
        Some(self.approve(self.contract, holder, spender, amount, ApprovalForm::DaiPermit, terms))
    }

    /// `from to value validAfter validBefore nonce`.
    fn transfer_authorization(&self, fields: &mut Fields<'_>) -> Read<Effect> {
        let (from, to, value) = (fields.address()?, fields.address()?, fields.uint()?);
        let (_valid_after, valid_before) = (fields.uint()?, moment(fields.uint()?));
        let terms = self.terms(fields.word()?, valid_before, valid_before);
        let (amount, form) = (allowance(value, 256), ApprovalForm::TransferAuthorization);
        Some(self.approve(self.contract, from, to, amount, form, terms))
    }

    /// `authorizer nonce`. Nobody may take anything by it, at no time.
    fn cancel_authorization(&self, fields: &mut Fields<'_>) -> Read<Effect> {
        let authorizer = fields.address()?;
        let terms = self.terms(fields.word()?, Some(0), Some(0));
        let form = ApprovalForm::TransferAuthorization;
        Some(self.approve(self.contract, authorizer, authorizer, Amount::ZERO, form, terms))
    }

    /// `details spender sigDeadline`, of which each detail is `token amount expiration nonce`.
    fn permit2_allowance(&self, form: Form, fields: &mut Fields<'_>) -> Read<Vec<Effect>> {
        known!(self.bound(Wrapper::Permit2));
        let details = listed(form == Form::PermitSingle, fields)?;
        let (spender, deadline) = (fields.address()?, moment(fields.uint()?));
        let mut effects = Vec::new();
        for mut detail in details {
            let (token, amount) = (detail.address()?, allowance(detail.uint()?, 160));
            let (expiration, nonce) = (moment(detail.uint()?), detail.uint()?);
            // An expiration of 0 is the block in which it is submitted.
            let expires = if expiration == Some(0) { deadline } else { expiration };
            let terms = self.terms(nonce, deadline, expires);
            let form = ApprovalForm::Permit2;
            effects.push(known!(self.approve(token, self.from, spender, amount, form, terms)));
        }
        Some(Ok(effects))
    }

    /// `permitted spender nonce deadline` and perhaps a witness; each permitted is `token amount`. It sets no
    /// allowance: after the deadline nothing can be taken.
    fn permit2_transfer(&self, form: Form, fields: &mut Fields<'_>) -> Read<Vec<Effect>> {
        known!(self.bound(Wrapper::Permit2));
        let permitted = listed(form == Form::PermitTransferFrom, fields)?;
        let spender = fields.address()?;
        let (nonce, deadline) = (fields.uint()?, moment(fields.uint()?));
        let mut effects = Vec::new();
        for mut one in permitted {
            let (token, amount) = (one.address()?, allowance(one.uint()?, 256));
            let terms = self.terms(nonce, deadline, deadline);
            let form = ApprovalForm::Permit2Transfer;
            effects.push(known!(self.approve(token, self.from, spender, amount, form, terms)));
        }
        Some(Ok(effects))
    }

    /// `offerer zone offer consideration orderType startTime endTime zoneHash salt conduitKey counter`, and
    /// each offer is `itemType token identifierOrCriteria startAmount endAmount`.
    fn order(&self, fields: &mut Fields<'_>) -> Read<Vec<Effect>> {
        known!(self.bound(Wrapper::Seaport));
        let (offerer, _zone) = (fields.address()?, fields.address()?);
        known!(self.own(offerer));
        let (offer, _consideration) = (fields.array()?, fields.array()?);
        // 4 is a contract's order, which nobody signs.
        if fields.uint()? > U256::from(3) {
            return Some(Err("the order's type is not one that is signed".to_owned()));
        }
        let (_start, end) = (fields.uint()?, moment(fields.uint()?));
        let (_zone_hash, _salt, _conduit) = (fields.word()?, fields.uint()?, fields.word()?);
        let terms = self.terms(fields.uint()?, end, end);
        let offer = offer.iter().map(|item| self.offered(Fields::of(item)?, &terms));
        offer.collect()
    }

    fn offered(&self, mut item: Fields<'_>, terms: &PermitTerms) -> Read<Effect> {
        let (kind, address) = (u8::try_from(item.uint()?).ok()?, item.address()?);
        let (id, start, end) = (item.uint()?, item.uint()?, item.uint()?);
        let (standard, id) = match kind {
            1 => {
                let (amount, form) = (allowance(start.max(end), 256), ApprovalForm::Seaport);
                let terms = terms.clone();
                let owner = self.from;
                return Some(self.approve(address, owner, self.contract, amount, form, terms));
            }
            2 => (Standard::Erc721, Some(id)),
            3 => (Standard::Erc1155, Some(id)),
            // By criteria: whichever token the buyer says.
            4 => (Standard::Erc721, None),
            5 => (Standard::Erc1155, None),
            _ => return Some(Err("an offer of native value or of an unknown kind".to_owned())),
        };
        let asset = self.registry.asset_at(self.chain, address);
        let Some(asset) = asset.filter(|asset| asset.standard == standard) else {
            let standard = standard.name();
            return Some(Err(format!("{address} is not a registered {standard} asset")));
        };
        Some(Ok(operator(asset, self.from, self.contract, id, true)))
    }

    fn terms(&self, nonce: U256, deadline: Option<u64>, expires: Option<u64>) -> PermitTerms {
        PermitTerms { verifying_contract: self.contract, nonce, deadline, expires }
    }

    fn approve(
        &self,
        asset: Address,
        owner: Address,
        spender: Address,
        amount: Amount,
        form: ApprovalForm,
        terms: PermitTerms,
    ) -> Result<Effect, String> {
        self.own(owner)?;
        let asset = token(self.registry, self.chain, asset)?.name.clone();
        Ok(Effect::Approve { asset, owner, spender, amount, form, permit: Some(terms) })
    }
}

fn one(effect: Result<Effect, String>) -> Read<Vec<Effect>> {
    Some(effect.map(|effect| vec![effect]))
}

/// The next field: one struct, or an array of them.
fn listed<'a>(single: bool, fields: &mut Fields<'a>) -> Option<Vec<Fields<'a>>> {
    if single {
        return Some(vec![fields.inner()?]);
    }
    let all: &'a [DynSolValue] = fields.array()?;
    all.iter().map(Fields::of).collect()
}
