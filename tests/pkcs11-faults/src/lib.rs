//! A PKCS#11 module for tests. It forwards every call to the module that `PKCS11_FAULTS_MODULE` names, and
//! fails those that the file of `PKCS11_FAULTS_CONTROL` says, for as long as it says so. A line of it:
//!
//! ```text
//! FUNCTION FAULT [COUNT | UNTIL_INITIALIZE] [@LABEL]
//!
//! C_Sign CKR_DEVICE_ERROR        each call answers this, until the line is gone
//! C_SignInit CKR_HOST_MEMORY 3   the next three calls do
//! * CKR_DEVICE_REMOVED @spare    each call that asks the token with this label, whichever it is
//! * CKR_DEVICE_ERROR UNTIL_INITIALIZE   until C_Initialize has been called again
//! # a remark
//! ```
//!
//! `*` means neither `C_Initialize` and `C_Finalize` nor the closing of sessions. A fault is the name of a
//! return value, or one of these:
//!
//! - `WAIT`: the call waits until the line is gone, and is then made.
//! - `LOG`: the call is told in the log, and made.
//! - `CLOSE_ALL_SESSIONS`, `LOGOUT`, `RESTART`: the token's sessions are closed, its login is lost, or the
//!   whole module is finalised and initialised, behind the caller's back; then the call is made.
//! - of `C_Sign`: `WRONG` (a signature by the key over other data), `OTHER_KEY` (by another private key of the
//!   token), `RANDOM` (64 bytes that are no signature), `SHORT` (63 bytes); and right ones that are rare:
//!   `HIGH_S`, `ZERO_R`, `ZERO_S` (signed again until it is so). The question for the length is spared.
//! - of `C_GetAttributeValue`: `RAW_POINT` (`CKA_EC_POINT` without its DER wrapping).
//! - of `C_GetTokenInfo`: `OTHER_LABEL` (a label that is nobody's).
//!
//! The first line that speaks of a call counts. The file is to be renamed into its place; counts begin anew
//! with each file. Every fault is told as a line of the file beside it whose name ends in `.log`: the
//! function, a tab, and the line. So is a `C_Finalize` during other calls, as `OVERLAP`.
//!
//! What is done behind the caller's back waits until no call is in the module behind, so that it means an
//! error and not a crash of the module behind.

mod bend;
mod calls;
mod control;
mod line;
mod sessions;
mod sign;
mod values;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_ARGUMENTS_BAD, CKR_GENERAL_ERROR, CKR_OK, Pkcs11};
use std::sync::OnceLock;

/// The real module's functions, and ours.
struct Lists {
    real: CK_FUNCTION_LIST,
    ours: CK_FUNCTION_LIST,
}

// SAFETY: function pointers of a module that stays loaded; the standard allows calls from all threads.
unsafe impl Send for Lists {}
// SAFETY: as above; nothing is changed after it is made.
unsafe impl Sync for Lists {}

static LISTS: OnceLock<Option<Lists>> = OnceLock::new();

fn lists() -> Option<&'static Lists> {
    LISTS.get_or_init(load).as_ref()
}

/// The module behind; without functions if there is none.
fn real() -> CK_FUNCTION_LIST {
    lists().map_or_else(CK_FUNCTION_LIST::default, |lists| lists.real)
}

fn load() -> Option<Lists> {
    let path = std::env::var_os("PKCS11_FAULTS_MODULE")?;
    // SAFETY: loading a PKCS#11 module runs its initialisers, which is what it is for.
    let module = unsafe { Pkcs11::new(path) }.ok()?;
    // It stays loaded until the process ends.
    let module: &'static Pkcs11 = Box::leak(Box::new(module));
    let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
    // SAFETY: the standard's way to a module's functions; `list` is a place for one pointer.
    let answer = unsafe { module.C_GetFunctionList(&raw mut list) };
    if answer != CKR_OK || list.is_null() {
        return None;
    }
    // SAFETY: the module gave a pointer to its list, which it keeps, and it answered CKR_OK.
    let real = unsafe { *list };
    let mut ours = calls::list();
    ours.version = real.version;
    ours.C_GetFunctionList = Some(C_GetFunctionList);
    Some(Lists { real, ours })
}

/// The one function that a PKCS#11 module must export (v2.40, section 5.4).
///
/// # Safety
/// `list` points to a place for one pointer, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let Some(lists) = lists() else {
        return CKR_GENERAL_ERROR;
    };
    // SAFETY: the caller's place for a pointer; callers only read what it points to.
    unsafe { *list = (&raw const lists.ours).cast_mut() };
    CKR_OK
}
