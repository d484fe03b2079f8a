//! `C_Sign` alone: CKM_ECDSA over 32 bytes with the server's own keys, in a process of its own, because the
//! module reads its environment once.

use super::cpu;
use super::support::server::SetUp;
use super::support::services::tool;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::UserType;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

/// What the module alone does.
pub struct Raw {
    pub threads: usize,
    pub per_second: f64,
    /// CPU time of one call.
    pub cpu_us: f64,
}

/// Measures in a child.
pub fn measure(setup: &SetUp, threads: usize, each: Duration) -> Raw {
    let dir = setup.dir();
    let pin = std::fs::read_to_string(dir.join("pin")).unwrap();
    let run = Command::new(std::env::current_exe().unwrap())
        .arg("raw")
        .env("SOFTHSM2_CONF", dir.join("softhsm2.conf"))
        .env("BENCH_RAW", json!([threads, each.as_millis() as u64, pin.trim()]).to_string())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    let raw = Raw {
        threads,
        per_second: found["per_second"].as_f64().unwrap(),
        cpu_us: found["cpu_us"].as_f64().unwrap(),
    };
    println!(
        "C_Sign alone, {threads} thread(s): {:.0}/s, {:.0} us CPU",
        raw.per_second, raw.cpu_us
    );
    raw
}

/// The child's part.
pub fn child() {
    let text = std::env::var("BENCH_RAW").unwrap();
    let (threads, each_ms, pin): (usize, u64, String) = serde_json::from_str(&text).unwrap();
    let module = Pkcs11::new(tool("SOFTHSM_MODULE")).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slots = module.get_slots_with_initialized_token().unwrap();
    let main = module.open_ro_session(slots[0]).unwrap();
    main.login(UserType::User, Some(&pin.into())).unwrap();
    let private = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
    let keys = main.find_objects(&private).unwrap();
    let end = Instant::now() + Duration::from_millis(each_ms);
    let sessions: Vec<_> =
        (0..threads).map(|_| module.open_ro_session(slots[0]).unwrap()).collect();
    let counts: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let running: Vec<_> = sessions
            .into_iter()
            .map(|session| {
                let keys = &keys;
                scope.spawn(move || {
                    let (mut count, before) = (0_u64, cpu::this_thread());
                    while Instant::now() < end {
                        let mut digest = [7_u8; 32];
                        digest[..8].copy_from_slice(&count.to_be_bytes());
                        let key = keys[count as usize % keys.len()];
                        session.sign(&Mechanism::Ecdsa, key, &digest).unwrap();
                        count += 1;
                    }
                    (count, cpu::this_thread() - before)
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (count, ns) = counts.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    let per_second = count as f64 / (each_ms as f64 / 1000.0);
    let cpu_us = ns as f64 / count as f64 / 1000.0;
    println!("{}", json!({ "per_second": per_second, "cpu_us": cpu_us }));
}
