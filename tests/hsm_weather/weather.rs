//! What goes wrong in the HSM, one thing after another, from a seed.

use crate::random::Random;
use crate::support::pkcs11_faults::Pkcs11Faults;
use crate::support::services::poll_until;
use crate::support::signing_load::Load;
use std::collections::BTreeMap;
use std::time::Duration;

/// Faults of `C_Sign` that make its answer wrong.
pub const SPOILT: &[&str] = &["WRONG", "OTHER_KEY", "RANDOM", "SHORT"];
const RARE: &[&str] = &["HIGH_S", "ZERO_R", "ZERO_S"];
const LOST: &[&str] = &["CLOSE_ALL_SESSIONS", "LOGOUT", "RESTART"];
const GONE: &[&str] =
    &["* CKR_DEVICE_ERROR", "* CKR_TOKEN_NOT_PRESENT", "* CKR_DEVICE_REMOVED UNTIL_INITIALIZE"];
const FUNCTIONS: &[&str] = &[
    "C_Sign",
    "C_Sign",
    "C_SignInit",
    "C_SignInit",
    "C_OpenSession",
    "C_GetSessionInfo",
    "C_GetTokenInfo",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
    "C_Login",
];
const VALUES: &[&str] = &[
    "CKR_DEVICE_ERROR",
    "CKR_DEVICE_MEMORY",
    "CKR_DEVICE_REMOVED",
    "CKR_FUNCTION_CANCELED",
    "CKR_FUNCTION_FAILED",
    "CKR_GENERAL_ERROR",
    "CKR_HOST_MEMORY",
    "CKR_KEY_HANDLE_INVALID",
    "CKR_OBJECT_HANDLE_INVALID",
    "CKR_OPERATION_ACTIVE",
    "CKR_OPERATION_NOT_INITIALIZED",
    "CKR_SESSION_CLOSED",
    "CKR_SESSION_COUNT",
    "CKR_SESSION_HANDLE_INVALID",
    "CKR_TOKEN_NOT_PRESENT",
    "CKR_USER_NOT_LOGGED_IN",
];
/// What `C_Login` may answer and not condemn the PIN: the token has not seen it.
const UNSEEN: &[&str] = &["CKR_DEVICE_ERROR", "CKR_DEVICE_REMOVED", "CKR_TOKEN_NOT_PRESENT"];
/// How the rows begin that tell how many calls a kind of fault has met.
pub const MET: &str = "faults, calls met: ";
/// So long without a signature, or without a call that is met, and the weather is not to blame.
const LIMIT: Duration = Duration::from_secs(120);

/// What there is. Each comes once before any comes again.
pub const KINDS: &[&str] = &[
    "wrong signatures",
    "rare signatures",
    "lost",
    "gone",
    "refused",
    "hangs",
    "raw points",
    "lost",
    "refused",
];

/// One of them.
struct Fault {
    kind: &'static str,
    /// What is wrong.
    line: String,
    /// What else must be wrong for it to be met.
    helper: &'static str,
    /// It is over when it has met so many calls.
    calls: usize,
}

pub struct Weather<'a> {
    faults: &'a Pkcs11Faults,
    random: Random,
    /// The kinds that are still to come.
    deck: Vec<&'static str>,
}

impl<'a> Weather<'a> {
    pub const fn new(faults: &'a Pkcs11Faults, random: Random) -> Self {
        Self { faults, random, deck: Vec::new() }
    }

    /// Changes until so many are released; answers how often each fault came, and how many calls it met.
    pub async fn until(mut self, load: &Load, most: u64) -> BTreeMap<String, u64> {
        let mut times: BTreeMap<String, u64> = BTreeMap::new();
        while load.tally().released < most {
            let Fault { kind, line, helper, calls } = self.next();
            let before = self.faults.count_by(&line);
            self.faults.set(&[line.as_str(), helper].join("\n"));
            *times.entry(format!("faults: {kind}: times")).or_default() += 1;
            poll_until(LIMIT, &format!("`{line}` has met {calls} calls"), async || {
                let over = load.tally().released >= most;
                (over || self.faults.count_by(&line) >= before + calls).then_some(())
            })
            .await;
            if !line.contains("UNTIL_INITIALIZE") {
                self.faults.clear();
            }
            self.calm(load, most).await;
            let met = self.faults.count_by(&line) - before;
            *times.entry(format!("{MET}{kind}")).or_default() += met as u64;
        }
        self.faults.clear();
        times
    }

    /// Until some more are released: each fault finds a server that works. A long run has longer calms.
    async fn calm(&mut self, load: &Load, most: u64) {
        let times = 1 + most / 10_000;
        let wanted = times * (20 + self.random.below(100));
        let wanted = most.min(load.tally().released + wanted);
        poll_until(LIMIT, "signatures are given again", async || {
            let tally = load.tally();
            assert!(tally.wrong.is_empty(), "{:?}", tally.wrong);
            (tally.released >= wanted).then_some(())
        })
        .await;
        self.faults.clear();
    }

    /// The next fault.
    fn next(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = KINDS.to_vec();
        }
        let random = &mut self.random;
        let place = usize::try_from(random.below(self.deck.len() as u64)).unwrap();
        let kind = self.deck.swap_remove(place);
        let count = 1 + random.below(4);
        let mut one_of = |from: &'static [&'static str]| *random.pick(from).unwrap();
        let mut helper = "";
        let (line, calls) = match kind {
            "wrong signatures" => (format!("C_Sign {} {count}", one_of(SPOILT)), count),
            "rare signatures" => (format!("C_Sign {} {count}", one_of(RARE)), count),
            "lost" => (format!("{} {} 1", one_of(&["C_Sign", "C_SignInit"]), one_of(LOST)), 1),
            // A few probes long, or until the module is started again.
            "gone" => match one_of(GONE) {
                again if again.contains("UNTIL_INITIALIZE") => (again.to_owned(), 1),
                gone => (gone.to_owned(), 2 + 3 * count),
            },
            "refused" => {
                let function = one_of(FUNCTIONS);
                helper = what_brings_it_there(function);
                // While nothing is wrong only the two first are called at all.
                let calls = if helper.is_empty() { count } else { 1 };
                let values = if function == "C_Login" { UNSEEN } else { VALUES };
                (format!("{function} {} {count}", one_of(values)), calls)
            }
            "hangs" => {
                let function = one_of(&["C_Sign", "C_SignInit", "C_GetSessionInfo"]);
                helper = what_brings_it_there(function);
                // A third one hangs, now and then, in a thread that has taken the place of another.
                let calls = match count {
                    _ if !helper.is_empty() => 1,
                    4 => 3,
                    few => few.min(2),
                };
                (format!("{function} WAIT {calls}"), calls)
            }
            // Points are read when keys are found again.
            _ => {
                helper = "C_SignInit LOGOUT 1";
                ("C_GetAttributeValue RAW_POINT".to_owned(), count)
            }
        };
        Fault { kind, line, helper, calls: usize::try_from(calls).unwrap() }
    }
}

/// A second line, without which a function is not called while all is well.
fn what_brings_it_there(function: &str) -> &'static str {
    match function {
        "C_Sign" | "C_SignInit" => "",
        // A token is looked at when it was gone.
        "C_GetTokenInfo" => "C_SignInit CKR_TOKEN_NOT_PRESENT",
        _ => "C_SignInit LOGOUT 1",
    }
}
