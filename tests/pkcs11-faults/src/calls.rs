//! The functions of the standard (v2.40, section 5), each with its faults before it. Those of multi-part
//! operations and of digests are not there: nobody here uses them.

#![allow(non_snake_case, reason = "functions have the names of the standard")]

use crate::bend::unwrapped;
use crate::control::{Call, found, initialized, tell, wait_while};
use crate::line::{Bend, Fault};
use crate::sessions::{Mechanism, sessions};
use crate::{real, sign};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_FUNCTION_LIST, CK_INFO,
    CK_MECHANISM, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_NOTIFY, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG,
    CK_UNAVAILABLE_INFORMATION, CK_USER_TYPE, CKA_EC_POINT, CKF_OS_LOCKING_OK,
    CKR_BUFFER_TOO_SMALL, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_OK,
};
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

/// Held for reading by each call that is in the module behind, for writing by what would pull the rug from
/// under them: a module may crash then, and SoftHSM does.
static INSIDE: RwLock<()> = RwLock::new(());

/// How many calls the caller has in this module, waiting ones too.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// A call that has not come back.
pub struct Counted;

impl Counted {
    fn new() -> Self {
        CALLS.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a call asks.
#[derive(Clone, Copy)]
enum Target {
    Module,
    Slot(CK_SLOT_ID),
    Session(CK_SESSION_HANDLE),
}

impl Target {
    fn slot(self) -> Option<CK_SLOT_ID> {
        match self {
            Self::Module => None,
            Self::Slot(slot) => Some(slot),
            Self::Session(session) => sessions().get(session).map(|open| open.slot),
        }
    }

    fn label(self) -> Option<String> {
        let (slot, ask) = (self.slot()?, real().C_GetTokenInfo?);
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: a place for what the module behind says of its token.
        let answer = inside(|| unsafe { ask(slot, &raw mut info) });
        let label = String::from_utf8_lossy(&info.label).trim_end().to_owned();
        (answer == CKR_OK).then_some(label)
    }
}

/// Makes a call of the module behind.
pub fn inside<T>(call: impl FnOnce() -> T) -> T {
    let _one_of_many = INSIDE.read().unwrap_or_else(PoisonError::into_inner);
    call()
}

/// The faults before a call: `Err` is what it answers instead of being made.
fn before(
    function: &'static str,
    target: Target,
    is_question: bool,
) -> Result<Option<Bend>, CK_RV> {
    let call = Call { function, is_question, label: &|| target.label() };
    let Some((fault, line)) = found(&call) else { return Ok(None) };
    match fault {
        Fault::Answer(answer) => return Err(answer),
        Fault::Bend(bend) => return Ok(Some(bend)),
        Fault::Wait => wait_while(&line),
        Fault::Log => {}
        Fault::CloseAllSessions => close_all_sessions(target),
        Fault::Logout => logout(target),
        Fault::Restart => restart(),
    }
    Ok(None)
}

fn close_all_sessions(target: Target) {
    let (Some(slot), Some(close)) = (target.slot(), real().C_CloseAllSessions) else { return };
    let _alone = INSIDE.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: no call is in the module behind; a slot that the caller knows.
    if unsafe { close(slot) } == CKR_OK {
        sessions().remove_slot(slot);
    }
}

fn logout(target: Target) {
    let (Target::Session(session), Some(logout)) = (target, real().C_Logout) else { return };
    let _alone = INSIDE.write().unwrap_or_else(PoisonError::into_inner);
    let session = sessions().real(session);
    // SAFETY: no call is in the module behind; one of its sessions. It may have lost its login already.
    let _ = unsafe { logout(session) };
}

fn restart() {
    let (Some(end), Some(begin)) = (real().C_Finalize, real().C_Initialize) else { return };
    let _alone = INSIDE.write().unwrap_or_else(PoisonError::into_inner);
    let mut arguments =
        CK_C_INITIALIZE_ARGS { flags: CKF_OS_LOCKING_OK, ..CK_C_INITIALIZE_ARGS::default() };
    // SAFETY: no call is in the module behind; the arguments live until both have returned.
    let begun = unsafe {
        end(std::ptr::null_mut());
        sessions().clear();
        begin((&raw mut arguments).cast())
    };
    if begun == CKR_OK {
        initialized();
    }
}

macro_rules! of_slots {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $name(slot: CK_SLOT_ID, $($argument: $type),*) -> CK_RV {
            let _counted = Counted::new();
            match (before(stringify!($name), Target::Slot(slot), false), real().$name) {
                (Err(answer), _) => answer,
                // SAFETY: the caller's arguments, as they came.
                (Ok(_), Some(real)) => inside(|| unsafe { real(slot, $($argument),*) }),
                (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
            }
        }
    )*};
}

macro_rules! of_sessions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $name(session: CK_SESSION_HANDLE, $($argument: $type),*) -> CK_RV {
            let _counted = Counted::new();
            match (before(stringify!($name), Target::Session(session), false), real().$name) {
                (Err(answer), _) => answer,
                (Ok(_), Some(real)) => inside(|| {
                    let session = sessions().real(session);
                    // SAFETY: the caller's arguments, as they came, and its session.
                    unsafe { real(session, $($argument),*) }
                }),
                (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
            }
        }
    )*};
}

of_slots! {
    C_GetSlotInfo(info: *mut CK_SLOT_INFO);
    C_GetMechanismList(list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG);
    C_GetMechanismInfo(mechanism: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO);
    C_InitToken(pin: *mut CK_BYTE, length: CK_ULONG, label: *mut CK_BYTE);
}

of_sessions! {
    C_InitPIN(pin: *mut CK_BYTE, length: CK_ULONG);
    C_SetPIN(old: *mut CK_BYTE, old_length: CK_ULONG, new: *mut CK_BYTE, length: CK_ULONG);
    C_GetSessionInfo(info: *mut CK_SESSION_INFO);
    C_Login(user: CK_USER_TYPE, pin: *mut CK_BYTE, length: CK_ULONG);
    C_Logout();
    C_CreateObject(template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut CK_OBJECT_HANDLE);
    C_CopyObject(
        from: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, to: *mut CK_OBJECT_HANDLE
    );
    C_DestroyObject(object: CK_OBJECT_HANDLE);
    C_GetObjectSize(object: CK_OBJECT_HANDLE, size: *mut CK_ULONG);
    C_SetAttributeValue(object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    C_FindObjectsInit(template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    C_FindObjects(found: *mut CK_OBJECT_HANDLE, most: CK_ULONG, count: *mut CK_ULONG);
    C_FindObjectsFinal();
    C_EncryptInit(mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    C_Encrypt(data: *mut CK_BYTE, length: CK_ULONG, into: *mut CK_BYTE, into_length: *mut CK_ULONG);
    C_DecryptInit(mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    C_Decrypt(data: *mut CK_BYTE, length: CK_ULONG, into: *mut CK_BYTE, into_length: *mut CK_ULONG);
    C_VerifyInit(mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    C_Verify(data: *mut CK_BYTE, length: CK_ULONG, signature: *mut CK_BYTE, of_length: CK_ULONG);
    C_GenerateKey(
        mechanism: *mut CK_MECHANISM, template: *mut CK_ATTRIBUTE, count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE
    );
    C_GenerateKeyPair(
        mechanism: *mut CK_MECHANISM, public: *mut CK_ATTRIBUTE, public_count: CK_ULONG,
        private: *mut CK_ATTRIBUTE, private_count: CK_ULONG, public_key: *mut CK_OBJECT_HANDLE,
        private_key: *mut CK_OBJECT_HANDLE
    );
    C_WrapKey(
        mechanism: *mut CK_MECHANISM, wrapping: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE,
        into: *mut CK_BYTE, length: *mut CK_ULONG
    );
    C_UnwrapKey(
        mechanism: *mut CK_MECHANISM, unwrapping: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE,
        length: CK_ULONG, template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE
    );
    C_DeriveKey(
        mechanism: *mut CK_MECHANISM, base: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE,
        count: CK_ULONG, key: *mut CK_OBJECT_HANDLE
    );
    C_SeedRandom(seed: *mut CK_BYTE, length: CK_ULONG);
    C_GenerateRandom(into: *mut CK_BYTE, length: CK_ULONG);
}

unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    match (before("C_Initialize", Target::Module, false), real().C_Initialize) {
        (Err(answer), _) => answer,
        (Ok(_), Some(begin)) => {
            // SAFETY: the caller's arguments, as they came.
            let answer = inside(|| unsafe { begin(arguments) });
            if answer == CKR_OK {
                initialized();
            }
            answer
        }
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    match (before("C_Finalize", Target::Module, false), real().C_Finalize) {
        (Err(answer), _) => answer,
        (Ok(_), Some(end)) => {
            // What the standard leaves undefined (v2.40, section 5.4) is told, and not done.
            if CALLS.load(Ordering::SeqCst) > 0 {
                tell("C_Finalize", "OVERLAP");
            }
            let _alone = INSIDE.write().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: no call is in the module behind.
            let answer = unsafe { end(reserved) };
            if answer == CKR_OK {
                sessions().clear();
            }
            answer
        }
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_GetInfo(info: *mut CK_INFO) -> CK_RV {
    let _counted = Counted::new();
    match (before("C_GetInfo", Target::Module, false), real().C_GetInfo) {
        (Err(answer), _) => answer,
        // SAFETY: the caller's argument, as it came.
        (Ok(_), Some(real)) => inside(|| unsafe { real(info) }),
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_GetSlotList(
    with_token: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    let _counted = Counted::new();
    match (before("C_GetSlotList", Target::Module, false), real().C_GetSlotList) {
        (Err(answer), _) => answer,
        // SAFETY: the caller's arguments, as they came.
        (Ok(_), Some(real)) => inside(|| unsafe { real(with_token, slots, count) }),
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    let _counted = Counted::new();
    match (before("C_OpenSession", Target::Slot(slot), false), real().C_OpenSession) {
        (Err(answer), _) => answer,
        (Ok(_), Some(real)) => inside(|| {
            // SAFETY: the caller's arguments, as they came.
            let answer = unsafe { real(slot, flags, application, notify, session) };
            if answer == CKR_OK {
                // SAFETY: the module behind has written a handle there; the caller gets one of ours.
                unsafe { *session = sessions().add(*session, slot) };
            }
            answer
        }),
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    let _counted = Counted::new();
    match (before("C_CloseSession", Target::Session(session), false), real().C_CloseSession) {
        (Err(answer), _) => answer,
        (Ok(_), Some(real)) => inside(|| {
            let behind = sessions().real(session);
            // SAFETY: the caller's session.
            let answer = unsafe { real(behind) };
            if answer == CKR_OK {
                sessions().remove(session);
            }
            answer
        }),
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    if let Err(answer) = before("C_CloseAllSessions", Target::Slot(slot), false) {
        return answer;
    }
    close_all_sessions(Target::Slot(slot));
    CKR_OK
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let _counted = Counted::new();
    let before = before("C_GetTokenInfo", Target::Slot(slot), false);
    let (bend, Some(ask)) = (before, real().C_GetTokenInfo) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let bend = match bend {
        Err(answer) => return answer,
        Ok(bend) => bend,
    };
    // SAFETY: the caller's arguments, as they came.
    let answer = inside(|| unsafe { ask(slot, info) });
    if answer == CKR_OK && bend == Some(Bend::OtherLabel) {
        // SAFETY: the module behind has just written there.
        unsafe { (*info).label = [b'?'; 32] };
    }
    answer
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    let _counted = Counted::new();
    let before = before("C_GetAttributeValue", Target::Session(session), false);
    let (bend, Some(ask)) = (before, real().C_GetAttributeValue) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let ask = |template, count| {
        inside(|| {
            let session = sessions().real(session);
            // SAFETY: the caller's arguments as they came, or a template of ours with room for its values.
            unsafe { ask(session, object, template, count) }
        })
    };
    match bend {
        Err(answer) => answer,
        Ok(None) => ask(template, count),
        Ok(Some(_)) => {
            let Ok(length) = usize::try_from(count) else { return CKR_GENERAL_ERROR };
            // SAFETY: the caller's template has so many attributes, and is the caller's only during the call.
            let wanted = unsafe { std::slice::from_raw_parts_mut(template, length) };
            with_raw_points(wanted, |template| ask(template.as_mut_ptr(), count))
        }
    }
}

/// Asks for attributes, and takes the wrapping off each `CKA_EC_POINT`.
fn with_raw_points(
    wanted: &mut [CK_ATTRIBUTE],
    ask: impl FnOnce(&mut [CK_ATTRIBUTE]) -> CK_RV,
) -> CK_RV {
    let mut asked = wanted.to_vec();
    let mut points = vec![[0_u8; 512]; wanted.len()];
    for (attribute, point) in asked.iter_mut().zip(&mut points) {
        if attribute.type_ == CKA_EC_POINT {
            attribute.pValue = point.as_mut_ptr().cast();
            attribute.ulValueLen = point.len() as CK_ULONG;
        }
    }
    let mut answer = ask(&mut asked);
    for ((attribute, given), point) in wanted.iter_mut().zip(&asked).zip(&points) {
        let read = usize::try_from(given.ulValueLen).ok().and_then(|length| point.get(..length));
        let (CKA_EC_POINT, Some(read)) = (attribute.type_, read) else {
            attribute.ulValueLen = given.ulValueLen;
            continue;
        };
        let raw = unwrapped(read);
        let length = raw.len() as CK_ULONG;
        if attribute.pValue.is_null() {
            attribute.ulValueLen = length;
        } else if attribute.ulValueLen < length {
            attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
            answer = CKR_BUFFER_TOO_SMALL;
        } else {
            // SAFETY: the caller has given a place of at least this length.
            unsafe {
                std::ptr::copy_nonoverlapping(raw.as_ptr(), attribute.pValue.cast(), raw.len())
            };
            attribute.ulValueLen = length;
        }
    }
    answer
}

unsafe extern "C" fn C_SignInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    let _counted = Counted::new();
    match (before("C_SignInit", Target::Session(session), false), real().C_SignInit) {
        (Err(answer), _) => answer,
        (Ok(_), Some(real)) => inside(|| {
            // SAFETY: a mechanism of the caller, or null.
            let known = unsafe { mechanism.as_ref() }.and_then(Mechanism::of);
            let behind = sessions().real(session);
            // SAFETY: the caller's arguments, as they came, and its session.
            let answer = unsafe { real(behind, mechanism, key) };
            sessions().begin(session, known.map(|mechanism| (mechanism, key)));
            answer
        }),
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

unsafe extern "C" fn C_Sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_length: CK_ULONG,
    signature: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let _counted = Counted::new();
    let before = before("C_Sign", Target::Session(session), signature.is_null());
    let Some(real) = real().C_Sign else { return CKR_FUNCTION_NOT_SUPPORTED };
    let call = sign::Call { session, data, data_length, signature, length };
    match before {
        Err(answer) => answer,
        Ok(None) => inside(|| {
            let session = sessions().real(session);
            // SAFETY: the caller's arguments, as they came, and its session.
            unsafe { real(session, data, data_length, signature, length) }
        }),
        // SAFETY: the caller's arguments; it has given a place for the signature.
        Ok(Some(bend)) => inside(|| unsafe { sign::bent(bend, &call) }),
    }
}

/// Our functions.
pub fn list() -> CK_FUNCTION_LIST {
    CK_FUNCTION_LIST {
        C_Initialize: Some(C_Initialize),
        C_Finalize: Some(C_Finalize),
        C_GetInfo: Some(C_GetInfo),
        C_GetSlotList: Some(C_GetSlotList),
        C_GetSlotInfo: Some(C_GetSlotInfo),
        C_GetTokenInfo: Some(C_GetTokenInfo),
        C_GetMechanismList: Some(C_GetMechanismList),
        C_GetMechanismInfo: Some(C_GetMechanismInfo),
        C_InitToken: Some(C_InitToken),
        C_InitPIN: Some(C_InitPIN),
        C_SetPIN: Some(C_SetPIN),
        C_OpenSession: Some(C_OpenSession),
        C_CloseSession: Some(C_CloseSession),
        C_CloseAllSessions: Some(C_CloseAllSessions),
        C_GetSessionInfo: Some(C_GetSessionInfo),
        C_Login: Some(C_Login),
        C_Logout: Some(C_Logout),
        C_CreateObject: Some(C_CreateObject),
        C_CopyObject: Some(C_CopyObject),
        C_DestroyObject: Some(C_DestroyObject),
        C_GetObjectSize: Some(C_GetObjectSize),
        C_GetAttributeValue: Some(C_GetAttributeValue),
        C_SetAttributeValue: Some(C_SetAttributeValue),
        C_FindObjectsInit: Some(C_FindObjectsInit),
        C_FindObjects: Some(C_FindObjects),
        C_FindObjectsFinal: Some(C_FindObjectsFinal),
        C_EncryptInit: Some(C_EncryptInit),
        C_Encrypt: Some(C_Encrypt),
        C_DecryptInit: Some(C_DecryptInit),
        C_Decrypt: Some(C_Decrypt),
        C_SignInit: Some(C_SignInit),
        C_Sign: Some(C_Sign),
        C_VerifyInit: Some(C_VerifyInit),
        C_Verify: Some(C_Verify),
        C_GenerateKey: Some(C_GenerateKey),
        C_GenerateKeyPair: Some(C_GenerateKeyPair),
        C_WrapKey: Some(C_WrapKey),
        C_UnwrapKey: Some(C_UnwrapKey),
        C_DeriveKey: Some(C_DeriveKey),
        C_SeedRandom: Some(C_SeedRandom),
        C_GenerateRandom: Some(C_GenerateRandom),
        ..CK_FUNCTION_LIST::default()
    }
}
