//! The control file: which call fails, how, and how often.

use cryptoki_sys::{
    CK_RV, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY, CKR_DEVICE_REMOVED, CKR_FUNCTION_FAILED,
    CKR_GENERAL_ERROR, CKR_HOST_MEMORY, CKR_SESSION_HANDLE_INVALID, CKR_TOKEN_NOT_PRESENT,
    CKR_USER_NOT_LOGGED_IN,
};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const NAMES: [(&str, CK_RV); 9] = [
    ("CKR_DEVICE_ERROR", CKR_DEVICE_ERROR),
    ("CKR_DEVICE_MEMORY", CKR_DEVICE_MEMORY),
    ("CKR_DEVICE_REMOVED", CKR_DEVICE_REMOVED),
    ("CKR_FUNCTION_FAILED", CKR_FUNCTION_FAILED),
    ("CKR_GENERAL_ERROR", CKR_GENERAL_ERROR),
    ("CKR_HOST_MEMORY", CKR_HOST_MEMORY),
    ("CKR_SESSION_HANDLE_INVALID", CKR_SESSION_HANDLE_INVALID),
    ("CKR_TOKEN_NOT_PRESENT", CKR_TOKEN_NOT_PRESENT),
    ("CKR_USER_NOT_LOGGED_IN", CKR_USER_NOT_LOGGED_IN),
];

/// How often each line has made a call fail since the text became what it is.
#[derive(Default)]
struct Used {
    text: String,
    times: HashMap<usize, u64>,
}

static USED: Mutex<Option<Used>> = Mutex::new(None);

/// How long a call that waits sleeps between two looks at the file.
const PAUSE: Duration = Duration::from_millis(10);

/// What a line does to a call.
#[derive(Clone, Copy)]
enum Fault {
    Answer(CK_RV),
    Wait,
}

/// What this call answers instead of being made; `None` if it is to be made. A line that cannot be read
/// makes every call fail: a test must not pass because its fault never came.
pub fn fault(function: &str) -> Option<CK_RV> {
    let control = PathBuf::from(std::env::var_os("PKCS11_FAULTS_CONTROL")?);
    let (fault, line) = found(function, &control)?;
    tell(&control, &line);
    match fault {
        Fault::Answer(answer) => Some(answer),
        Fault::Wait => {
            while std::fs::read_to_string(&control).is_ok_and(|text| text.contains(&line)) {
                std::thread::sleep(PAUSE);
            }
            None
        }
    }
}

/// The first line that says something of this call, if it is not used up.
fn found(function: &str, control: &Path) -> Option<(Fault, String)> {
    let text = std::fs::read_to_string(control).ok()?;
    let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let used = used.get_or_insert_default();
    if used.text != text {
        *used = Used { text: text.clone(), times: HashMap::new() };
    }
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let Some((name, fault, most)) = read(line) else {
            return Some((Fault::Answer(CKR_GENERAL_ERROR), line.to_owned()));
        };
        let times = used.times.entry(number).or_default();
        if name == function && most.is_none_or(|most| *times < most) {
            *times += 1;
            return Some((fault, line.to_owned()));
        }
    }
    None
}

fn read(line: &str) -> Option<(&str, Fault, Option<u64>)> {
    let mut words = line.split_whitespace();
    let (function, name) = (words.next()?, words.next()?);
    let fault = match name {
        "WAIT" => Fault::Wait,
        _ => NAMES.iter().find(|(known, _)| *known == name).map(|it| Fault::Answer(it.1))?,
    };
    let most = match words.next() {
        None => None,
        Some(count) => Some(count.parse().ok()?),
    };
    words.next().is_none().then_some((function, fault, most))
}

fn tell(control: &Path, line: &str) {
    let mut log = control.as_os_str().to_owned();
    log.push(".log");
    let opened: std::io::Result<File> = OpenOptions::new().create(true).append(true).open(log);
    if let Ok(mut log) = opened {
        let _ = writeln!(log, "{line}");
    }
}
