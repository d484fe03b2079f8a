//! A PKCS#11 module for tests. It forwards every call to the module that `PKCS11_FAULTS_MODULE` names, and
//! fails those that the file of `PKCS11_FAULTS_CONTROL` says, for as long as it says so:
//!
//! ```text
//! C_Sign CKR_DEVICE_ERROR        each call fails, until the line is gone
//! C_SignInit CKR_HOST_MEMORY 3   the next three calls fail
//! C_Sign WAIT                    each call waits until the line is gone, and is then made
//! ```
//!
//! The file is read at each call; counts begin anew when its text changes. Every fault is told as a line of
//! the file beside it whose name ends in `.log`, so that a test can wait for it.

mod control;

use control::fault;
use cryptoki_sys::{
    CK_BYTE, CK_BYTE_PTR, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_ULONG, CKR_ARGUMENTS_BAD, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR,
    CKR_OK, Pkcs11,
};
use std::sync::OnceLock;

/// The real module's functions, and ours in the places of those that can fail.
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
    let ours = CK_FUNCTION_LIST {
        C_GetFunctionList: Some(C_GetFunctionList),
        C_SignInit: Some(sign_init),
        C_Sign: Some(sign),
        ..real
    };
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

unsafe extern "C" fn sign_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    match (fault("C_SignInit"), lists().and_then(|lists| lists.real.C_SignInit)) {
        (Some(answer), _) => answer,
        // SAFETY: the caller's arguments, as they came.
        (None, Some(real)) => unsafe { real(session, mechanism, key) },
        (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: CK_BYTE_PTR,
    data_len: CK_ULONG,
    signature: *mut CK_BYTE,
    signature_len: *mut CK_ULONG,
) -> CK_RV {
    match (fault("C_Sign"), lists().and_then(|lists| lists.real.C_Sign)) {
        (Some(answer), _) => answer,
        // SAFETY: the caller's arguments, as they came.
        (None, Some(real)) => unsafe { real(session, data, data_len, signature, signature_len) },
        (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}
