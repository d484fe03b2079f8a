//! What goes wrong in the HSM, one thing after another, from a seed.

use crate::random::Random;
use crate::support::pkcs11_faults::Pkcs11Faults;
use crate::support::signing_load::Load;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
/// None of them condemns the PIN: that would be for a person to mend.
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
/// So long without a signature, and the weather is not to blame.
const LIMIT: Duration = Duration::from_secs(120);

/// What there is. Each comes once before any comes again.
const KINDS: &[&str] = &[
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
            let (kind, line) = self.next();
            let before = self.faults.count();
            self.faults.set(&line);
            *times.entry(format!("faults: {kind}: times")).or_default() += 1;
            pace(20 + self.lasts(kind)).await;
            if !line.contains("UNTIL_INITIALIZE") {
                self.faults.clear();
            }
            self.calm(load, most).await;
            let met = self.faults.count() - before;
            *times.entry(format!("faults: {kind}: calls")).or_default() += met as u64;
        }
        self.faults.clear();
        times
    }

    /// How long a fault lasts at most, in milliseconds.
    fn lasts(&mut self, kind: &str) -> u64 {
        let at_most = match kind {
            "gone" => 1_200,
            // Long enough, now and then, for a thread to be given up.
            "hangs" if self.random.one_in(6) => 8_000,
            _ => 300,
        };
        self.random.below(at_most)
    }

    /// Until some more are released: each fault finds a server that works. A long run has longer calms.
    async fn calm(&mut self, load: &Load, most: u64) {
        let (begun, times) = (Instant::now(), 1 + most / 10_000);
        let wanted = times * (20 + self.random.below(100));
        let wanted = most.min(load.tally().released + wanted);
        while load.tally().released < wanted {
            let tally = load.tally();
            assert!(tally.wrong.is_empty(), "{:?}", tally.wrong);
            assert!(begun.elapsed() < LIMIT, "no signature any more: {tally}");
            pace(5).await;
        }
        self.faults.clear();
    }

    /// A kind of fault, and its line.
    fn next(&mut self) -> (&'static str, String) {
        if self.deck.is_empty() {
            self.deck = KINDS.to_vec();
        }
        let random = &mut self.random;
        let place = usize::try_from(random.below(self.deck.len() as u64)).unwrap();
        let kind = self.deck.swap_remove(place);
        let count = 1 + random.below(4);
        let mut one_of = |from: &'static [&'static str]| *random.pick(from).unwrap();
        let line = match kind {
            "wrong signatures" => format!("C_Sign {} {count}", one_of(SPOILT)),
            "rare signatures" => format!("C_Sign {} {count}", one_of(RARE)),
            "lost" => format!("{} {} 1", one_of(&["C_Sign", "C_SignInit"]), one_of(LOST)),
            "gone" => one_of(GONE).to_owned(),
            "refused" => format!("{} {} {count}", one_of(FUNCTIONS), one_of(VALUES)),
            "hangs" => {
                format!("{} WAIT {count}", one_of(&["C_Sign", "C_SignInit", "C_GetSessionInfo"]))
            }
            // Points are read when keys are found again.
            _ => "C_GetAttributeValue RAW_POINT\nC_SignInit LOGOUT 1".to_owned(),
        };
        (kind, line)
    }
}

/// Time that passes on purpose. Nothing waits for a result this way.
async fn pace(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}
