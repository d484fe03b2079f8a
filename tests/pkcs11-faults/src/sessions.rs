//! Which sessions are open, on which slot, and what they are to sign with. The caller gets handles of ours:
//! a module that is initialised again gives the old numbers to new sessions, and two threads would share one.

use cryptoki_sys::{
    CK_INVALID_HANDLE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID,
};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An open session.
#[derive(Clone, Copy)]
pub struct Open {
    /// Its handle in the module behind.
    pub real: CK_SESSION_HANDLE,
    /// Where.
    pub slot: CK_SLOT_ID,
    /// Mechanism and key of the last `C_SignInit`, if the mechanism has no parameter.
    pub signs: Option<(Mechanism, CK_OBJECT_HANDLE)>,
}

/// A mechanism without a parameter.
#[derive(Clone, Copy)]
pub struct Mechanism(cryptoki_sys::CK_MECHANISM_TYPE);

impl Mechanism {
    /// `None` if it has a parameter, whose bytes are the caller's.
    pub fn of(mechanism: &CK_MECHANISM) -> Option<Self> {
        mechanism.pParameter.is_null().then_some(Self(mechanism.mechanism))
    }

    /// As the standard passes it.
    pub fn to_c(self) -> CK_MECHANISM {
        CK_MECHANISM { mechanism: self.0, pParameter: std::ptr::null_mut(), ulParameterLen: 0 }
    }
}

/// All open sessions.
#[derive(Default)]
pub struct Sessions {
    last: CK_SESSION_HANDLE,
    open: Option<HashMap<CK_SESSION_HANDLE, Open>>,
}

static SESSIONS: Mutex<Sessions> = Mutex::new(Sessions { last: 0, open: None });

/// All open sessions, for a moment.
pub fn sessions() -> MutexGuard<'static, Sessions> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// A session was opened; answers the caller's handle.
    pub fn add(&mut self, real: CK_SESSION_HANDLE, slot: CK_SLOT_ID) -> CK_SESSION_HANDLE {
        self.last += 1;
        let open = Open { real, slot, signs: None };
        self.open.get_or_insert_default().insert(self.last, open);
        self.last
    }

    /// What is known of a session.
    pub fn get(&self, session: CK_SESSION_HANDLE) -> Option<Open> {
        self.open.as_ref()?.get(&session).copied()
    }

    /// The handle in the module behind; one that is never valid, if there is none.
    pub fn real(&self, session: CK_SESSION_HANDLE) -> CK_SESSION_HANDLE {
        self.get(session).map_or(CK_INVALID_HANDLE, |open| open.real)
    }

    /// A signature was begun.
    pub fn begin(
        &mut self,
        session: CK_SESSION_HANDLE,
        signs: Option<(Mechanism, CK_OBJECT_HANDLE)>,
    ) {
        if let Some(open) = self.open.get_or_insert_default().get_mut(&session) {
            open.signs = signs;
        }
    }

    /// A session was closed.
    pub fn remove(&mut self, session: CK_SESSION_HANDLE) {
        self.open.get_or_insert_default().remove(&session);
    }

    /// All sessions of a slot were closed.
    pub fn remove_slot(&mut self, slot: CK_SLOT_ID) {
        self.open.get_or_insert_default().retain(|_, open| open.slot != slot);
    }

    /// The module behind was finalised.
    pub fn clear(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_a_closed_session_never_means_another_one() {
        let mut sessions = Sessions::default();
        let first = sessions.add(1, 7);
        let other = sessions.add(2, 8);
        assert_eq!((sessions.real(first), sessions.real(other)), (1, 2));
        sessions.remove_slot(7);
        assert_eq!((sessions.real(first), sessions.real(other)), (CK_INVALID_HANDLE, 2));
        sessions.clear();
        let again = sessions.add(1, 7);
        assert!(again != first && again != other);
        assert_eq!((sessions.real(first), sessions.real(again)), (CK_INVALID_HANDLE, 1));
        sessions.remove(again);
        assert!(sessions.get(again).is_none());
    }
}
