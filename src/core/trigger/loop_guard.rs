//! Chains of causes: an event's transaction may be one that we asked for because of an event, whose transaction
//! may be one that we asked for, and so on. Where one trigger is in such a chain twice, it feeds itself.

use alloy::primitives::B256;

/// A chain of more causes than this is taken for a loop, whoever is in it.
pub const CAUSES_MAX: usize = 16;

/// One of our own requests, as the cause of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The request.
    pub request: String,
    /// The trigger that asked for it; empty if none did.
    pub trigger: String,
    /// The transaction whose event it answers, if it says.
    pub source: Option<B256>,
}

/// What comes next of a chain of causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It ends here: nothing of ours is before it.
    Ends,
    /// Look for who asked for this transaction.
    Look(B256),
    /// The trigger feeds itself; why, in words.
    Loop(String),
}

/// Whether `trigger` may act on an event whose causes, the nearest first, are these.
#[must_use]
pub fn next(trigger: &str, event: B256, causes: &[Cause]) -> Next {
    if let Some(own) = causes.iter().find(|cause| cause.trigger == trigger) {
        let request = &own.request;
        return Next::Loop(format!(
            "a loop: its event was caused by request {request}, which trigger {trigger} itself \
             asked for; `loop = \"allow\"` lets it"
        ));
    }
    if causes.len() >= CAUSES_MAX {
        return Next::Loop(format!(
            "a loop: more than {CAUSES_MAX} requests caused each other before this event"
        ));
    }
    match causes.last() {
        None => Next::Look(event),
        Some(Cause { source: Some(transaction), .. }) => Next::Look(*transaction),
        Some(Cause { source: None, .. }) => Next::Ends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(trigger: &str, source: Option<u8>) -> Cause {
        let (request, trigger) = ("r-1".to_owned(), trigger.to_owned());
        Cause { request, trigger, source: source.map(B256::repeat_byte) }
    }

    #[test]
    fn a_trigger_that_is_in_its_own_causes_is_cut() {
        let event = B256::repeat_byte(1);
        assert_eq!(next("a", event, &[]), Next::Look(event));
        assert!(matches!(next("a", event, &[cause("a", Some(2))]), Next::Loop(_)));
        let other = cause("b", Some(2));
        assert_eq!(
            next("a", event, std::slice::from_ref(&other)),
            Next::Look(B256::repeat_byte(2))
        );
        let indirect = [other, cause("a", Some(3))];
        assert!(matches!(next("a", event, &indirect), Next::Loop(_)));
        assert_eq!(next("a", event, &[cause("", None)]), Next::Ends);
    }

    #[test]
    fn a_chain_without_end_is_cut_too() {
        let chain = vec![cause("b", Some(2)); CAUSES_MAX];
        assert!(matches!(next("a", B256::ZERO, &chain), Next::Loop(_)));
    }
}
