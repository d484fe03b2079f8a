//! The kinds of problem: their stable names, statuses and titles, in one table.

use axum::http::StatusCode;

macro_rules! codes {
    ($($(#[$meta:meta])* $name:ident = $status:ident, $code:literal, $title:literal;)+) => {
        /// The stable name of each kind of problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$meta])* $name,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The HTTP status it is sent with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)+
                }
            }

            /// The kebab-case name in the document; it never changes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }

            /// A short summary, the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)+
                }
            }
        }
    };
}

codes! {
    /// The request is malformed; `field` says where.
    InvalidRequest = BAD_REQUEST, "invalid-request", "The request is not valid";
    /// No token, or one that is not accepted.
    Unauthenticated = UNAUTHORIZED, "unauthenticated", "The caller is not authenticated";
    /// Policy says no; `reasons` say why.
    PolicyDenied = FORBIDDEN, "policy-denied", "Policy denies the request";
    /// The caller is known and may not do this.
    Forbidden = FORBIDDEN, "forbidden", "The caller may not do this";
    /// No such path, or no such resource for this caller.
    NotFound = NOT_FOUND, "not-found", "There is no such resource";
    /// The path exists, not with this method; `Allow` names those that do.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here";
    /// The request took too long to arrive or to be handled.
    Timeout = REQUEST_TIMEOUT, "timeout", "The request took too long";
    /// The idempotency key was used before with another body; `resource` names what it made.
    IdempotencyMismatch = CONFLICT, "idempotency-mismatch",
        "The idempotency key belongs to another request";
    /// The state of the resource does not allow it.
    Conflict = CONFLICT, "conflict", "The state of the resource does not allow this";
    /// What was asked for is no longer kept, or is of another time of the database.
    Gone = GONE, "gone", "It is no longer there";
    /// A nonce was given for a key whose nonces we give.
    NonceManaged = CONFLICT, "nonce-managed", "The nonces of this key are managed";
    /// The account cannot pay for it, and the chain is configured to refuse what it cannot pay for.
    InsufficientBalance = CONFLICT, "insufficient-balance",
        "The account cannot pay for this transaction";
    /// The body is longer than the listener takes.
    TooLarge = PAYLOAD_TOO_LARGE, "too-large", "The request body is too large";
    /// The body is not declared as JSON.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type",
        "The body must be application/json";
    /// The call cannot be decoded to effects.
    NotDecodable = UNPROCESSABLE_ENTITY, "not-decodable", "The request cannot be decoded";
    /// The chain says that the transaction would revert.
    WouldRevert = UNPROCESSABLE_ENTITY, "would-revert", "The transaction would revert";
    /// A freeze is engaged.
    Frozen = LOCKED, "frozen", "A freeze is engaged";
    /// Too many requests from this caller.
    RateLimited = TOO_MANY_REQUESTS, "rate-limited", "Too many requests";
    /// Our fault; logged under the request's id.
    Internal = INTERNAL_SERVER_ERROR, "internal", "Something went wrong on the server";
    /// The HSM does not answer.
    HsmUnavailable = SERVICE_UNAVAILABLE, "hsm-unavailable", "The HSM is unavailable";
    /// The database does not answer.
    StoreUnavailable = SERVICE_UNAVAILABLE, "store-unavailable", "The store is unavailable";
    /// No node of the chain answers.
    ChainUnavailable = SERVICE_UNAVAILABLE, "chain-unavailable", "The chain is unavailable";
    /// The keys of the token's issuer cannot be had.
    IssuerUnavailable = SERVICE_UNAVAILABLE, "issuer-unavailable",
        "The token issuer is unavailable";
    /// The server has more work than it takes on.
    Overloaded = SERVICE_UNAVAILABLE, "overloaded", "The server is overloaded";
    /// The database may be older than the chain; an operator must look.
    ReconcileRequired = SERVICE_UNAVAILABLE, "reconcile-required",
        "The server waits for an operator";
    /// The clock has jumped; an operator must confirm it.
    ClockUnconfirmed = SERVICE_UNAVAILABLE, "clock-unconfirmed",
        "The server's clock waits for an operator";
}

impl Code {
    /// The `type` of the document. A URN, as nothing is served there: the section of
    /// `docs/problems.md` with this code explains it.
    #[must_use]
    pub fn type_uri(self) -> String {
        format!("urn:claviger:problem:{}", self.name())
    }
}
