//! `C_Sign` with an answer that is wrong, or right and rare.

use crate::bend::{is_wanted, noise, other_data};
use crate::line::Bend;
use crate::real;
use crate::sessions::sessions;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_TRUE, CK_ULONG,
    CKA_CLASS, CKA_SIGN, CKO_PRIVATE_KEY, CKR_BUFFER_TOO_SMALL, CKR_FUNCTION_FAILED,
    CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_OK, CKR_OPERATION_NOT_INITIALIZED,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// How often it is signed again for a rare signature. One in 256 begins with a zero byte.
const TRIES: usize = 20_000;

/// What the caller gave to `C_Sign`, with its own session handle.
pub struct Call {
    pub session: CK_SESSION_HANDLE,
    pub data: *mut CK_BYTE,
    pub data_length: CK_ULONG,
    pub signature: *mut CK_BYTE,
    pub length: *mut CK_ULONG,
}

/// Signs, and bends the answer.
///
/// # Safety
/// The pointers are as the standard wants them for `C_Sign`, and none is null.
pub unsafe fn bent(bend: Bend, call: &Call) -> CK_RV {
    let length = usize::try_from(call.data_length).unwrap_or_default();
    // SAFETY: the caller's data has this length.
    let data = unsafe { std::slice::from_raw_parts(call.data, length) };
    let made = match bend {
        Bend::Wrong => once(call.session, &other_data(data)),
        Bend::OtherKey => by_another_key(call.session, data),
        _ => once(call.session, data),
    };
    let mut signature = match made {
        Ok(signature) => signature,
        Err(answer) => return answer,
    };
    match bend {
        Bend::Random => noise(seed(), &mut signature),
        Bend::Short => signature.truncate(signature.len().saturating_sub(1)),
        _ => {}
    }
    for _ in 0..TRIES {
        if is_wanted(bend, &signature) {
            // SAFETY: the caller's places for signature and length.
            return unsafe { give(call, &signature) };
        }
        signature = match again(call.session, None).and_then(|()| once(call.session, data)) {
            Ok(signature) => signature,
            Err(answer) => return answer,
        };
    }
    CKR_FUNCTION_FAILED
}

/// # Safety
/// `signature` and `length` of the call are the caller's places for them.
unsafe fn give(call: &Call, signature: &[u8]) -> CK_RV {
    // SAFETY: as the caller of this function promises.
    let room = unsafe { *call.length };
    if room < signature.len() as CK_ULONG {
        return CKR_BUFFER_TOO_SMALL;
    }
    // SAFETY: the place has room for it.
    unsafe {
        std::ptr::copy_nonoverlapping(signature.as_ptr(), call.signature, signature.len());
        *call.length = signature.len() as CK_ULONG;
    }
    CKR_OK
}

fn seed() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// One signature by the module behind; ends the operation.
fn once(session: CK_SESSION_HANDLE, data: &[u8]) -> Result<Vec<u8>, CK_RV> {
    let sign = real().C_Sign.ok_or(CKR_FUNCTION_NOT_SUPPORTED)?;
    let session = sessions().real(session);
    let mut signature = vec![0; 512];
    let mut length = signature.len() as CK_ULONG;
    // SAFETY: data and signature are places of ours with these lengths; modules only read the data.
    let answer = unsafe {
        let data_at = data.as_ptr().cast_mut();
        sign(session, data_at, data.len() as CK_ULONG, signature.as_mut_ptr(), &raw mut length)
    };
    if answer != CKR_OK {
        return Err(answer);
    }
    signature.truncate(usize::try_from(length).unwrap_or_default());
    Ok(signature)
}

/// Begins the session's last operation once more, with its own key or another one.
fn again(session: CK_SESSION_HANDLE, other: Option<CK_OBJECT_HANDLE>) -> Result<(), CK_RV> {
    let begin = real().C_SignInit.ok_or(CKR_FUNCTION_NOT_SUPPORTED)?;
    let open = sessions().get(session).ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    let (mechanism, key) = open.signs.ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    let mut mechanism = mechanism.to_c();
    // SAFETY: a mechanism of ours that lives until the call returns.
    let answer = unsafe { begin(open.real, &raw mut mechanism, other.unwrap_or(key)) };
    if answer == CKR_OK { Ok(()) } else { Err(answer) }
}

/// A signature by another private key of the token; an error if there is none.
fn by_another_key(session: CK_SESSION_HANDLE, data: &[u8]) -> Result<Vec<u8>, CK_RV> {
    // A session does one thing at a time.
    once(session, data)?;
    let open = sessions().get(session).ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    let own = open.signs.ok_or(CKR_OPERATION_NOT_INITIALIZED)?.1;
    let others = signing_keys(open.real)?;
    let other = others.into_iter().find(|key| *key != own).ok_or(CKR_GENERAL_ERROR)?;
    again(session, Some(other))?;
    once(session, data)
}

fn signing_keys(session: CK_SESSION_HANDLE) -> Result<Vec<CK_OBJECT_HANDLE>, CK_RV> {
    let real = real();
    let (Some(begin), Some(find), Some(end)) =
        (real.C_FindObjectsInit, real.C_FindObjects, real.C_FindObjectsFinal)
    else {
        return Err(CKR_FUNCTION_NOT_SUPPORTED);
    };
    let (mut class, mut signs) = (CKO_PRIVATE_KEY, CK_TRUE);
    let attribute = |type_, value: *mut std::ffi::c_void, length: usize| CK_ATTRIBUTE {
        type_,
        pValue: value,
        ulValueLen: length as CK_ULONG,
    };
    let mut template = [
        attribute(CKA_CLASS, (&raw mut class).cast(), size_of_val(&class)),
        attribute(CKA_SIGN, (&raw mut signs).cast(), size_of_val(&signs)),
    ];
    let (mut found, mut count) = ([0; 64], 0);
    // SAFETY: template, its values and the places for the answer are ours and outlive the calls.
    let answer = unsafe {
        let begun = begin(session, template.as_mut_ptr(), template.len() as CK_ULONG);
        if begun != CKR_OK {
            return Err(begun);
        }
        let answer = find(session, found.as_mut_ptr(), found.len() as CK_ULONG, &raw mut count);
        end(session);
        answer
    };
    if answer != CKR_OK {
        return Err(answer);
    }
    let count = usize::try_from(count).unwrap_or_default();
    Ok(found.into_iter().take(count).collect())
}
