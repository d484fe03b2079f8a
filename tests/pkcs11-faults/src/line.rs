//! A line of the control file: `FUNCTION FAULT [COUNT | UNTIL_INITIALIZE] [@LABEL]`.

use crate::values::value;
use cryptoki_sys::CK_RV;

/// What a line does to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made and answers this.
    Answer(CK_RV),
    /// The call waits until the line is gone, and is then made.
    Wait,
    /// The call is told in the log, and made.
    Log,
    /// All sessions of the call's token are closed; then the call is made.
    CloseAllSessions,
    /// The login of the call's token is lost; then the call is made.
    Logout,
    /// The module behind is finalised and initialised; then the call is made.
    Restart,
    /// The call is made, and its answer is bent.
    Bend(Bend),
}

/// How an answer is bent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bend {
    /// A signature by the right key over other data.
    Wrong,
    /// As long as a signature, and none.
    Random,
    /// A signature without its last byte.
    Short,
    /// A signature by another private key of the token.
    OtherKey,
    /// A right signature whose `s` is in the upper half.
    HighS,
    /// A right signature whose `r` begins with a zero byte.
    ZeroR,
    /// A right signature whose `s` begins with a zero byte.
    ZeroS,
    /// `CKA_EC_POINT` comes without its DER wrapping.
    RawPoint,
    /// The token has another label.
    OtherLabel,
}

/// How long a line says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Until it is gone.
    None,
    /// For so many calls.
    Times(u64),
    /// Until `C_Initialize` of the module behind has been called again.
    UntilInitialize,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    function: Option<String>,
    /// What it does.
    pub fault: Fault,
    /// For how long.
    pub limit: Limit,
    label: Option<String>,
}

/// What `*` does not mean: these do not ask the token, and a test must be able to begin and end.
const NOT_THE_TOKEN: &[&str] =
    &["C_Initialize", "C_Finalize", "C_CloseSession", "C_CloseAllSessions"];

impl Line {
    /// Reads a line; `None` if it is none.
    pub fn read(text: &str) -> Option<Self> {
        let (text, label) = match text.split_once(" @") {
            Some((before, label)) => (before, Some(label.trim().to_owned())),
            None => (text, None),
        };
        let mut words = text.split_whitespace();
        let (function, fault) = (words.next()?, fault(words.next()?)?);
        let limit = match words.next() {
            None => Limit::None,
            Some("UNTIL_INITIALIZE") => Limit::UntilInitialize,
            Some(count) => Limit::Times(count.parse().ok()?),
        };
        let named = match function {
            "*" => None,
            name if name.starts_with("C_") => Some(name.to_owned()),
            _ => return None,
        };
        let fits = match fault {
            Fault::Bend(Bend::RawPoint) => function == "C_GetAttributeValue",
            Fault::Bend(Bend::OtherLabel) => function == "C_GetTokenInfo",
            Fault::Bend(_) => function == "C_Sign",
            _ => true,
        };
        let whole = words.next().is_none() && label.as_deref() != Some("");
        (whole && fits).then_some(Self { function: named, fault, limit, label })
    }

    /// Whether it speaks of calls of this function.
    pub fn names(&self, function: &str) -> bool {
        match &self.function {
            Some(name) => name == function,
            None => !NOT_THE_TOKEN.contains(&function),
        }
    }

    /// The one token that it speaks of.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Whether it says nothing of a call that only asks how long the answer would be.
    pub const fn spares_questions(&self) -> bool {
        matches!(self.fault, Fault::Bend(bend) if !matches!(bend, Bend::RawPoint))
    }
}

fn fault(word: &str) -> Option<Fault> {
    Some(match word {
        "WAIT" => Fault::Wait,
        "LOG" => Fault::Log,
        "CLOSE_ALL_SESSIONS" => Fault::CloseAllSessions,
        "LOGOUT" => Fault::Logout,
        "RESTART" => Fault::Restart,
        "WRONG" => Fault::Bend(Bend::Wrong),
        "RANDOM" => Fault::Bend(Bend::Random),
        "SHORT" => Fault::Bend(Bend::Short),
        "OTHER_KEY" => Fault::Bend(Bend::OtherKey),
        "HIGH_S" => Fault::Bend(Bend::HighS),
        "ZERO_R" => Fault::Bend(Bend::ZeroR),
        "ZERO_S" => Fault::Bend(Bend::ZeroS),
        "RAW_POINT" => Fault::Bend(Bend::RawPoint),
        "OTHER_LABEL" => Fault::Bend(Bend::OtherLabel),
        name => Fault::Answer(value(name)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_function_a_fault_a_limit_and_a_token() {
        let line = Line::read("C_Sign CKR_DEVICE_ERROR 3 @hot two").unwrap();
        assert_eq!((line.fault, line.limit), (Fault::Answer(0x30), Limit::Times(3)));
        assert_eq!(line.label(), Some("hot two"));
        assert!(line.names("C_Sign") && !line.names("C_SignInit"));
        let line = Line::read("* CKR_DEVICE_REMOVED UNTIL_INITIALIZE").unwrap();
        assert_eq!((line.limit, line.label()), (Limit::UntilInitialize, None));
        assert!(line.names("C_GetSlotList") && line.names("C_Login"));
        assert!(NOT_THE_TOKEN.iter().all(|function| !line.names(function)));
        assert!(Line::read("C_Finalize CKR_GENERAL_ERROR").unwrap().names("C_Finalize"));
    }

    #[test]
    fn what_is_no_line_is_told_so() {
        for text in [
            "C_Sign",
            "C_Sign CKR_OK",
            "C_Sign CKR_NO_SUCH_VALUE",
            "C_Sign CKR_DEVICE_ERROR many",
            "C_Sign CKR_DEVICE_ERROR 3 4",
            "C_Sign CKR_DEVICE_ERROR @ ",
            "Sign CKR_DEVICE_ERROR",
            "C_SignInit WRONG",
            "* HIGH_S",
            "C_Sign RAW_POINT",
        ] {
            assert_eq!(Line::read(text), None, "{text}");
        }
    }

    #[test]
    fn only_bent_signatures_spare_the_question_for_their_length() {
        let spares = |text| Line::read(text).unwrap().spares_questions();
        assert!(spares("C_Sign WRONG") && spares("C_Sign ZERO_S 2"));
        assert!(!spares("C_Sign CKR_DEVICE_ERROR") && !spares("C_GetAttributeValue RAW_POINT"));
    }
}
