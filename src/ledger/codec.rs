//! A record as the bytes of a spool frame.
//!
//! A payload begins with [`FORMAT`]; behind it stand fields, in any order. A field is its key, a varint of
//! `number * 4 + shape`, and its value: a varint (`shape` 0) or a varint of a length and so many bytes
//! (`shape` 1). What is not written is empty, zero, false or none, so a new version reads what an old one
//! left; and numbers a version does not know are skipped, so an old one reads what a new one left. Numbers
//! are never given twice. Payloads from before this format are JSON, and still read.

use crate::store::rows;
use filters::model::call::Endpoint;
use filters::model::key::KeyHash;
use filters::model::record::{Attempt, Record, Status};

/// First byte of a payload: no text begins so, neither JSON nor any other in UTF-8.
pub const FORMAT: u8 = 0xB1;
/// First byte of the JSON payloads that earlier versions wrote.
pub const JSON: u8 = b'{';

const NUMBER: u64 = 0;
const BYTES: u64 = 1;

/// The fields' numbers. New ones go to the end.
mod field {
    pub const REQUEST_ID: u64 = 1;
    pub const ENDPOINT: u64 = 2;
    pub const KEY_HASH: u64 = 3;
    pub const KEY_ALIAS: u64 = 4;
    pub const USER_ID: u64 = 5;
    pub const TEAM_ID: u64 = 6;
    pub const END_USER: u64 = 7;
    pub const REQUESTED_MODEL: u64 = 8;
    pub const MODEL_GROUP: u64 = 9;
    pub const MODEL: u64 = 10;
    pub const DEPLOYMENT_ID: u64 = 11;
    pub const PROVIDER: u64 = 12;
    pub const STREAM: u64 = 13;
    pub const STATUS: u64 = 14;
    pub const HTTP_STATUS: u64 = 15;
    pub const ERROR: u64 = 16;
    pub const PROMPT_TOKENS: u64 = 17;
    pub const COMPLETION_TOKENS: u64 = 18;
    pub const CACHED_TOKENS: u64 = 19;
    pub const CACHE_CREATION_TOKENS: u64 = 20;
    pub const REASONING_TOKENS: u64 = 21;
    pub const CHARACTERS: u64 = 22;
    pub const AUDIO_MILLIS: u64 = 23;
    pub const IMAGES: u64 = 24;
    pub const SPEND_NANOS: u64 = 25;
    pub const PRICED: u64 = 26;
    pub const ESTIMATED: u64 = 27;
    pub const CLAMPED: u64 = 28;
    pub const STARTED_MICROS: u64 = 29;
    pub const FIRST_BYTE_MICROS: u64 = 30;
    pub const ENDED_MICROS: u64 = 31;
    pub const ATTEMPT: u64 = 32;
    pub const TAG: u64 = 33;
    pub const METADATA: u64 = 34;
    pub const CLIENT_IP: u64 = 35;
    pub const USER_AGENT: u64 = 36;
    pub const BYTES_IN: u64 = 37;
    pub const BYTES_OUT: u64 = 38;
    pub const ORGANIZATION_ID: u64 = 39;
}

/// The same for an attempt.
mod attempt_field {
    pub const DEPLOYMENT_ID: u64 = 1;
    pub const STATUS: u64 = 2;
    pub const ERROR: u64 = 3;
    pub const DURATION_MICROS: u64 = 4;
}

/// Why a payload is no record.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it ends within a field")]
    Short,
    #[error("field {0} holds what it cannot hold")]
    Field(u64),
    #[error("field {0} is missing")]
    Missing(u64),
    #[error("it begins like nothing that was ever written")]
    Format,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Appends the record's payload.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    // Every field by name: one that is added is not forgotten here.
    let Record {
        request_id,
        endpoint,
        key_hash,
        key_alias,
        user_id,
        team_id,
        organization_id,
        end_user,
        requested_model,
        model_group,
        model,
        deployment_id,
        provider,
        stream,
        status,
        http_status,
        error,
        prompt_tokens,
        completion_tokens,
        cached_tokens,
        cache_creation_tokens,
        reasoning_tokens,
        characters,
        audio_millis,
        images,
        spend_nanos,
        priced,
        estimated,
        clamped,
        started_micros,
        first_byte_micros,
        ended_micros,
        attempts,
        tags,
        metadata,
        client_ip,
        user_agent,
        bytes_in,
        bytes_out,
    } = record;
    out.push(FORMAT);
    text(out, field::REQUEST_ID, request_id);
    text(out, field::ENDPOINT, rows::endpoint_name(*endpoint));
    if let Some(hash) = key_hash {
        bytes(out, field::KEY_HASH, &hash.0);
    }
    maybe_text(out, field::KEY_ALIAS, key_alias);
    maybe_text(out, field::USER_ID, user_id);
    maybe_text(out, field::TEAM_ID, team_id);
    maybe_text(out, field::ORGANIZATION_ID, organization_id);
    maybe_text(out, field::END_USER, end_user);
    text(out, field::REQUESTED_MODEL, requested_model);
    text(out, field::MODEL_GROUP, model_group);
    text(out, field::MODEL, model);
    text(out, field::DEPLOYMENT_ID, deployment_id);
    text(out, field::PROVIDER, provider);
    flag(out, field::STREAM, *stream);
    text(out, field::STATUS, status.as_str());
    count(out, field::HTTP_STATUS, u64::from(*http_status));
    maybe_text(out, field::ERROR, error);
    count(out, field::PROMPT_TOKENS, *prompt_tokens);
    count(out, field::COMPLETION_TOKENS, *completion_tokens);
    count(out, field::CACHED_TOKENS, *cached_tokens);
    count(out, field::CACHE_CREATION_TOKENS, *cache_creation_tokens);
    count(out, field::REASONING_TOKENS, *reasoning_tokens);
    count(out, field::CHARACTERS, *characters);
    count(out, field::AUDIO_MILLIS, *audio_millis);
    count(out, field::IMAGES, *images);
    signed(out, field::SPEND_NANOS, *spend_nanos);
    flag(out, field::PRICED, *priced);
    flag(out, field::ESTIMATED, *estimated);
    flag(out, field::CLAMPED, *clamped);
    signed(out, field::STARTED_MICROS, *started_micros);
    if let Some(micros) = first_byte_micros {
        key(out, field::FIRST_BYTE_MICROS, NUMBER);
        varint(out, zigzag(*micros));
    }
    signed(out, field::ENDED_MICROS, *ended_micros);
    for attempt in attempts {
        let Attempt {
            deployment_id,
            status,
            error,
            duration_micros,
        } = attempt;
        nested(out, field::ATTEMPT, |out| {
            text(out, attempt_field::DEPLOYMENT_ID, deployment_id);
            count(out, attempt_field::STATUS, u64::from(*status));
            maybe_text(out, attempt_field::ERROR, error);
            signed(out, attempt_field::DURATION_MICROS, *duration_micros);
        });
    }
    for tag in tags {
        bytes(out, field::TAG, tag.as_bytes());
    }
    maybe_text(out, field::METADATA, metadata);
    text(out, field::CLIENT_IP, client_ip);
    maybe_text(out, field::USER_AGENT, user_agent);
    count(out, field::BYTES_IN, *bytes_in);
    count(out, field::BYTES_OUT, *bytes_out);
}

/// Reads a payload of this format or of the one before it.
pub fn decode(payload: &[u8]) -> Result<Record, Unreadable> {
    let fields = match payload.split_first() {
        Some((&FORMAT, fields)) => fields,
        Some((&JSON, _)) => return Ok(serde_json::from_slice(payload)?),
        _ => return Err(Unreadable::Format),
    };
    let mut r = blank();
    let (mut endpoint, mut status) = (None, None);
    let mut fields = Fields(fields);
    while let Some(Field { number, value }) = fields.next()? {
        let wrong = Unreadable::Field(number);
        match number {
            field::REQUEST_ID => r.request_id = value.text(number)?,
            field::ENDPOINT => {
                endpoint = Some(rows::endpoint(value.str(number)?).map_err(|_| wrong)?);
            }
            field::KEY_HASH => {
                r.key_hash = Some(KeyHash(value.bytes(number)?.try_into().map_err(|_| wrong)?));
            }
            field::KEY_ALIAS => r.key_alias = Some(value.text(number)?),
            field::USER_ID => r.user_id = Some(value.text(number)?),
            field::TEAM_ID => r.team_id = Some(value.text(number)?),
            field::ORGANIZATION_ID => r.organization_id = Some(value.text(number)?),
            field::END_USER => r.end_user = Some(value.text(number)?),
            field::REQUESTED_MODEL => r.requested_model = value.text(number)?,
            field::MODEL_GROUP => r.model_group = value.text(number)?,
            field::MODEL => r.model = value.text(number)?,
            field::DEPLOYMENT_ID => r.deployment_id = value.text(number)?,
            field::PROVIDER => r.provider = value.text(number)?,
            field::STREAM => r.stream = value.flag(number)?,
            field::STATUS => status = Some(rows::status(value.str(number)?).map_err(|_| wrong)?),
            field::HTTP_STATUS => r.http_status = value.short(number)?,
            field::ERROR => r.error = Some(value.text(number)?),
            field::PROMPT_TOKENS => r.prompt_tokens = value.count(number)?,
            field::COMPLETION_TOKENS => r.completion_tokens = value.count(number)?,
            field::CACHED_TOKENS => r.cached_tokens = value.count(number)?,
            field::CACHE_CREATION_TOKENS => r.cache_creation_tokens = value.count(number)?,
            field::REASONING_TOKENS => r.reasoning_tokens = value.count(number)?,
            field::CHARACTERS => r.characters = value.count(number)?,
            field::AUDIO_MILLIS => r.audio_millis = value.count(number)?,
            field::IMAGES => r.images = value.count(number)?,
            field::SPEND_NANOS => r.spend_nanos = value.signed(number)?,
            field::PRICED => r.priced = value.flag(number)?,
            field::ESTIMATED => r.estimated = value.flag(number)?,
            field::CLAMPED => r.clamped = value.flag(number)?,
            field::STARTED_MICROS => r.started_micros = value.signed(number)?,
            field::FIRST_BYTE_MICROS => r.first_byte_micros = Some(value.signed(number)?),
            field::ENDED_MICROS => r.ended_micros = value.signed(number)?,
            field::ATTEMPT => r.attempts.push(attempt(value.bytes(number)?)?),
            field::TAG => r.tags.push(value.text(number)?),
            field::METADATA => r.metadata = Some(value.text(number)?),
            field::CLIENT_IP => r.client_ip = value.text(number)?,
            field::USER_AGENT => r.user_agent = Some(value.text(number)?),
            field::BYTES_IN => r.bytes_in = value.count(number)?,
            field::BYTES_OUT => r.bytes_out = value.count(number)?,
            // A newer version's.
            _ => {}
        }
    }
    r.endpoint = endpoint.ok_or(Unreadable::Missing(field::ENDPOINT))?;
    r.status = status.ok_or(Unreadable::Missing(field::STATUS))?;
    if r.request_id.is_empty() {
        return Err(Unreadable::Missing(field::REQUEST_ID));
    }
    Ok(r)
}

fn attempt(bytes: &[u8]) -> Result<Attempt, Unreadable> {
    let mut a = Attempt {
        deployment_id: String::new(),
        status: 0,
        error: None,
        duration_micros: 0,
    };
    let mut fields = Fields(bytes);
    while let Some(Field { number, value }) = fields.next()? {
        match number {
            attempt_field::DEPLOYMENT_ID => a.deployment_id = value.text(number)?,
            attempt_field::STATUS => a.status = value.short(number)?,
            attempt_field::ERROR => a.error = Some(value.text(number)?),
            attempt_field::DURATION_MICROS => a.duration_micros = value.signed(number)?,
            _ => {}
        }
    }
    Ok(a)
}

/// A record that says nothing.
fn blank() -> Record {
    Record {
        request_id: String::new(),
        endpoint: Endpoint::Chat,
        key_hash: None,
        key_alias: None,
        user_id: None,
        team_id: None,
        organization_id: None,
        end_user: None,
        requested_model: String::new(),
        model_group: String::new(),
        model: String::new(),
        deployment_id: String::new(),
        provider: String::new(),
        stream: false,
        status: Status::Failure,
        http_status: 0,
        error: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        cache_creation_tokens: 0,
        reasoning_tokens: 0,
        characters: 0,
        audio_millis: 0,
        images: 0,
        spend_nanos: 0,
        priced: false,
        estimated: false,
        clamped: false,
        started_micros: 0,
        first_byte_micros: None,
        ended_micros: 0,
        attempts: Vec::new(),
        tags: Vec::new(),
        metadata: None,
        client_ip: String::new(),
        user_agent: None,
        bytes_in: 0,
        bytes_out: 0,
    }
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Two varints of one byte each, as most fields begin.
fn short(key: u64, n: u64) -> Option<[u8; 2]> {
    (key | n < 0x80).then_some([key as u8, n as u8])
}

fn key(out: &mut Vec<u8>, number: u64, shape: u64) {
    varint(out, number << 2 | shape);
}

/// Small numbers of either sign become small ones without.
fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn count(out: &mut Vec<u8>, number: u64, n: u64) {
    if let Some(short) = short(number << 2 | NUMBER, n).filter(|_| n != 0) {
        out.extend_from_slice(&short);
    } else if n != 0 {
        key(out, number, NUMBER);
        varint(out, n);
    }
}

fn signed(out: &mut Vec<u8>, number: u64, n: i64) {
    count(out, number, zigzag(n));
}

fn flag(out: &mut Vec<u8>, number: u64, on: bool) {
    count(out, number, u64::from(on));
}

fn bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    let len = bytes.len() as u64;
    if let Some(short) = short(number << 2 | BYTES, len) {
        out.extend_from_slice(&short);
    } else {
        key(out, number, BYTES);
        varint(out, len);
    }
    out.extend_from_slice(bytes);
}

fn text(out: &mut Vec<u8>, number: u64, text: &str) {
    if !text.is_empty() {
        bytes(out, number, text.as_bytes());
    }
}

/// An empty text is not none.
fn maybe_text(out: &mut Vec<u8>, number: u64, text: &Option<String>) {
    if let Some(text) = text {
        bytes(out, number, text.as_bytes());
    }
}

/// Fields within a field. Its length is known only behind it, so room for four bytes is left before it: a
/// varint may be written longer than it needs to be.
fn nested(out: &mut Vec<u8>, number: u64, write: impl FnOnce(&mut Vec<u8>)) {
    key(out, number, BYTES);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = (out.len() - at - 4) as u64;
    let spelled = [
        len as u8 | 0x80,
        (len >> 7) as u8 | 0x80,
        (len >> 14) as u8 | 0x80,
        (len >> 21) as u8 & 0x7f,
    ];
    for (place, byte) in out.iter_mut().skip(at).zip(spelled) {
        *place = byte;
    }
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<Field<'a>>, Unreadable> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = key >> 2;
        let value = match key & 3 {
            NUMBER => Value::Number(self.varint()?),
            BYTES => {
                let len = usize::try_from(self.varint()?).map_err(|_| Unreadable::Short)?;
                let (bytes, rest) = self.0.split_at_checked(len).ok_or(Unreadable::Short)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => return Err(Unreadable::Field(number)),
        };
        Ok(Some(Field { number, value }))
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        // Most are short.
        if let Some((byte @ ..0x80, rest)) = self.0.split_first() {
            self.0 = rest;
            return Ok(u64::from(*byte));
        }
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Unreadable::Short)?;
            self.0 = rest;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(Unreadable::Short)
    }
}

impl<'a> Value<'a> {
    fn count(&self, number: u64) -> Result<u64, Unreadable> {
        match self {
            Value::Number(n) => Ok(*n),
            Value::Bytes(_) => Err(Unreadable::Field(number)),
        }
    }

    fn signed(&self, number: u64) -> Result<i64, Unreadable> {
        self.count(number).map(unzigzag)
    }

    fn short(&self, number: u64) -> Result<u16, Unreadable> {
        u16::try_from(self.count(number)?).map_err(|_| Unreadable::Field(number))
    }

    fn flag(&self, number: u64) -> Result<bool, Unreadable> {
        Ok(self.count(number)? != 0)
    }

    fn bytes(&self, number: u64) -> Result<&'a [u8], Unreadable> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) => Err(Unreadable::Field(number)),
        }
    }

    fn str(&self, number: u64) -> Result<&'a str, Unreadable> {
        std::str::from_utf8(self.bytes(number)?).map_err(|_| Unreadable::Field(number))
    }

    fn text(&self, number: u64) -> Result<String, Unreadable> {
        self.str(number).map(Into::into)
    }
}

#[cfg(test)]
mod tests;
