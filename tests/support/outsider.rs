//! Somebody else at the token: another program with the same PIN, which makes, changes and destroys objects
//! behind the server's back. It is this test's program once more, since the module reads where its tokens are
//! from the environment, once.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

#[path = "test_key.rs"]
mod test_key;

use self::test_key::SECP256K1;
use super::server::SetUp;
use super::services::tool;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use ethers_core::k256::ecdsa::SigningKey;
use serde_json::{Value, json};
use std::process::Command;

const TASK: &str = "CLAVIGER_TEST_TASK";
const PIN: &str = "CLAVIGER_TEST_PIN";
const MARK: &str = "outsider: ";
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Does it, in a process of its own. `test` is the test that calls [`play`].
pub fn outsider(setup: &SetUp, test: &str, task: &Value) -> Value {
    let pin = std::fs::read_to_string(setup.dir().join("pin")).unwrap();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("SOFTHSM2_CONF", setup.dir().join("softhsm2.conf"))
        .env(TASK, task.to_string())
        .env(PIN, pin.trim())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&ran.stdout);
    let told = out.lines().find_map(|line| line.split_once(MARK));
    let told = told.unwrap_or_else(|| panic!("{out}\n{}", String::from_utf8_lossy(&ran.stderr)));
    serde_json::from_str(told.1).unwrap()
}

/// The part of the process that [`outsider`] starts. `false` in the test itself.
pub fn play() -> bool {
    let Ok(task) = std::env::var(TASK) else { return false };
    let task: Value = serde_json::from_str(&task).unwrap();
    let module = Pkcs11::new(tool("SOFTHSM_MODULE")).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slots = module.get_slots_with_initialized_token().unwrap();
    let label = task["token"].as_str().unwrap_or("claviger");
    let slot =
        slots.into_iter().find(|slot| module.get_token_info(*slot).unwrap().label() == label);
    let session = module.open_rw_session(slot.unwrap()).unwrap();
    let pin = std::env::var(PIN).unwrap();
    session.login(UserType::User, Some(&pin.clone().into())).unwrap();
    let done = match task["do"].as_str().unwrap() {
        "list" => list(&session),
        "generate" => generate(&session, &task),
        "import" => import(&session, &task),
        "destroy" => {
            for object in found(&session, &task) {
                session.destroy_object(object).unwrap();
            }
            Value::Null
        }
        "relabel" => {
            let id = Attribute::Id(hex::decode(task["as"].as_str().unwrap()).unwrap());
            for object in found(&session, &task) {
                session.update_attributes(object, std::slice::from_ref(&id)).unwrap();
            }
            Value::Null
        }
        other => panic!("{other}"),
    };
    println!("{MARK}{done}");
    true
}

fn found(session: &Session, task: &Value) -> Vec<ObjectHandle> {
    let id = hex::decode(task["id"].as_str().unwrap()).unwrap();
    let mut template = vec![Attribute::Token(true), Attribute::Id(id)];
    match task["class"].as_str() {
        Some("private") => template.push(Attribute::Class(ObjectClass::PRIVATE_KEY)),
        Some("public") => template.push(Attribute::Class(ObjectClass::PUBLIC_KEY)),
        _ => {}
    }
    session.find_objects(&template).unwrap()
}

/// All objects, sorted: class, label, id, and the private ones' flags.
fn list(session: &Session) -> Value {
    let mut all: Vec<Value> = Vec::new();
    for object in session.find_objects(&[Attribute::Token(true)]).unwrap() {
        let mut one = json!({});
        for wanted in [AttributeType::Class, AttributeType::Label, AttributeType::Id] {
            for attribute in session.get_attributes(object, &[wanted]).unwrap() {
                match attribute {
                    Attribute::Class(class) => one["class"] = json!(class.to_string()),
                    Attribute::Label(label) => {
                        one["label"] = json!(String::from_utf8(label).unwrap())
                    }
                    Attribute::Id(id) => one["id"] = json!(hex::encode(id)),
                    _ => {}
                }
            }
        }
        all.push(one);
    }
    all.sort_by_key(ToString::to_string);
    json!(all)
}

/// A pair with the attributes of ours, but for what the task says otherwise.
fn generate(session: &Session, task: &Value) -> Value {
    let id = Attribute::Id(hex::decode(task["id"].as_str().unwrap()).unwrap());
    let label = Attribute::Label(task["label"].as_str().unwrap_or("made elsewhere").into());
    let curve = if task["curve"] == "p256" { P256.to_vec() } else { SECP256K1.to_vec() };
    let is = |name: &str, otherwise: bool| task[name].as_bool().unwrap_or(otherwise);
    let public = [Attribute::Token(true), Attribute::EcParams(curve), id.clone(), label.clone()];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(is("sensitive", true)),
        Attribute::Extractable(is("extractable", false)),
        Attribute::Sign(is("sign", true)),
        Attribute::Decrypt(is("decrypt", false)),
        Attribute::Unwrap(is("unwrap", false)),
        Attribute::Derive(is("derive", false)),
        id,
        label,
    ];
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private).unwrap();
    Value::Null
}

/// A pair whose private half was made elsewhere: `value`, in hex.
fn import(session: &Session, task: &Value) -> Value {
    let bytes = |name: &str| hex::decode(task[name].as_str().unwrap()).unwrap();
    let key = SigningKey::from_slice(&bytes("value")).unwrap();
    test_key::put(session, &key, &bytes("id"));
    Value::Null
}
