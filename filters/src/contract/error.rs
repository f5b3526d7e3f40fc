//! Who is to blame decides the type: a [`Refusal`] is the caller's, a [`Fault`] is ours or an
//! upstream's. Filters return them; the host renders them in one place.

use std::fmt;

/// Why a request goes no further.
#[derive(Debug)]
pub enum Stop {
    Refusal(Refusal),
    Fault(Fault),
}

/// The caller can do something about it. Shown to the caller as it stands.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: u16,
    /// OpenAI's `type`, or LiteLLM's where it has its own.
    pub kind: &'static str,
    pub param: Option<String>,
    /// OpenAI's `code`; None = the status as text, as LiteLLM writes it.
    pub code: Option<&'static str>,
    /// A sentence that says what happened and what to do next.
    pub message: String,
    /// Further headers of the answer: `Retry-After`, `x-should-retry`, `Allow`, …
    pub headers: Vec<(&'static str, String)>,
}

impl Refusal {
    pub fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            param: None,
            code: None,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// 400 `invalid_request_error`.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// 401 `auth_error`.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "auth_error", message).header("www-authenticate", "Bearer")
    }

    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Ours, or an upstream's. `shown` is what the caller may know; `cause` goes to the log, once.
#[derive(Debug)]
pub struct Fault {
    pub status: u16,
    pub kind: &'static str,
    pub shown: String,
    pub cause: String,
    pub headers: Vec<(&'static str, String)>,
}

impl Fault {
    /// 500: something here is broken.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self {
            status: 500,
            kind: "internal_server_error",
            shown: "The gateway failed to handle this request. It is logged under the request id.".into(),
            cause: cause.to_string(),
            headers: Vec::new(),
        }
    }

    /// 503: something we stand on is away for now.
    pub fn unavailable(shown: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self {
            status: 503,
            kind: "service_unavailable_error",
            shown: shown.into(),
            cause: cause.to_string(),
            headers: vec![("retry-after", "5".into())],
        }
    }

    /// 502: an upstream failed; `shown` names the deployment, never its address.
    pub fn upstream(shown: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self {
            status: 502,
            kind: "upstream_error",
            shown: shown.into(),
            cause: cause.to_string(),
            headers: Vec::new(),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(r: Refusal) -> Self {
        Stop::Refusal(r)
    }
}

impl From<Fault> for Stop {
    fn from(f: Fault) -> Self {
        Stop::Fault(f)
    }
}

impl Stop {
    pub fn status(&self) -> u16 {
        match self {
            Stop::Refusal(r) => r.status,
            Stop::Fault(f) => f.status,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Stop::Refusal(r) => r.kind,
            Stop::Fault(f) => f.kind,
        }
    }

    /// The sentence for the caller.
    pub fn shown(&self) -> &str {
        match self {
            Stop::Refusal(r) => &r.message,
            Stop::Fault(f) => &f.shown,
        }
    }
}
