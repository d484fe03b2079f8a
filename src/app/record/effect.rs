//! Effects as leaves and the API say them.

use super::{list, map, or_none};
use crate::core::audit::Value;
use crate::core::policy::Effect;
use crate::core::policy::effect::{CallArgument, CallEffect, PermitTerms};
use alloy::primitives::Address;

fn hex(address: Address) -> Value {
    format!("{address:#x}").into()
}

fn argument(argument: &CallArgument) -> Value {
    map([
        ("name", (&argument.name).into()),
        ("type", (&argument.kind).into()),
        ("value", (&argument.value).into()),
    ])
}

fn call(name: &str, call: &CallEffect) -> Value {
    map([
        ("effect", name.into()),
        ("from", hex(call.from)),
        ("contract", (&call.contract).into()),
        ("to", hex(call.to)),
        ("function", (&call.function).into()),
        ("args", list(&call.args, argument)),
        ("value", call.value.into()),
    ])
}

fn permit(terms: &PermitTerms) -> Value {
    map([
        ("verifying_contract", hex(terms.verifying_contract)),
        ("nonce", terms.nonce.to_string().into()),
        ("deadline", or_none(terms.deadline)),
        ("expires", or_none(terms.expires)),
    ])
}

/// One effect.
pub(super) fn show(effect: &Effect) -> Value {
    match effect {
        Effect::NativeOut { from, to, amount } => map([
            ("effect", "native_out".into()),
            ("from", hex(*from)),
            ("to", hex(*to)),
            ("amount", amount.into()),
        ]),
        Effect::FeeMax { amount } => map([("effect", "fee_max".into()), ("amount", amount.into())]),
        Effect::TokenOut { asset, from, to, amount } => map([
            ("effect", "token_out".into()),
            ("asset", asset.into()),
            ("from", hex(*from)),
            ("to", hex(*to)),
            ("amount", amount.into()),
        ]),
        Effect::NftOut { asset, from, to, id, amount } => map([
            ("effect", "nft_out".into()),
            ("asset", asset.into()),
            ("from", hex(*from)),
            ("to", hex(*to)),
            ("id", id.to_string().into()),
            ("amount", amount.into()),
        ]),
        Effect::Approve { asset, owner, spender, amount, form, permit: terms } => map([
            ("effect", "approve".into()),
            ("asset", asset.into()),
            ("owner", hex(*owner)),
            ("spender", hex(*spender)),
            ("amount", amount.into()),
            ("form", form.name().into()),
            ("permit", terms.as_ref().map_or_else(|| "".into(), permit)),
        ]),
        Effect::OperatorApproval { asset, owner, operator, id, approved } => map([
            ("effect", "operator_approval".into()),
            ("asset", asset.into()),
            ("owner", hex(*owner)),
            ("operator", hex(*operator)),
            ("id", or_none(*id)),
            ("approved", (*approved).into()),
        ]),
        Effect::Delegate { authority, to, nonce } => map([
            ("effect", "delegate".into()),
            ("authority", hex(*authority)),
            ("to", hex(*to)),
            ("nonce", (*nonce).into()),
        ]),
        Effect::Create { from, init_code_hash, value } => map([
            ("effect", "create".into()),
            ("from", hex(*from)),
            ("init_code_hash", format!("{init_code_hash:#x}").into()),
            ("value", value.into()),
        ]),
        Effect::AdminOp(it) => call("admin_op", it),
        Effect::Call(it) => call("call", it),
        Effect::TypedMessage { type_hash, primary_type, verifying_contract } => map([
            ("effect", "typed_message".into()),
            ("type_hash", format!("{type_hash:#x}").into()),
            ("primary_type", primary_type.into()),
            ("verifying_contract", hex(*verifying_contract)),
        ]),
        Effect::TextMessage { text } => {
            map([("effect", "text_message".into()), ("text", text.into())])
        }
        Effect::Opaque { why, call: None } => {
            map([("effect", "opaque".into()), ("why", why.into())])
        }
        Effect::Opaque { why, call: Some(call) } => map([
            ("effect", "opaque".into()),
            ("why", why.into()),
            ("from", hex(call.from)),
            ("to", hex(call.to)),
            ("selector", or_none(call.selector.map(|it| format!("0x{}", hex::encode(it))))),
            ("value", call.value.into()),
            ("code_hash", or_none(call.code_hash.map(|it| format!("{it:#x}")))),
        ]),
    }
}
