//! `LiteLLM_ProxyModelTable` and the credentials its models refer to. Provider keys are decrypted here; a
//! model of which one value cannot be is left out whole: without its key it could only fail.

use super::row::{Row, Shape, id_flaw};
use super::secrets::{Closed, Salts};
use super::write::Wanted;
use crate::store::Table;
use crate::store::litellm::{self, ReadError, Source};
use serde_json::{Map, Value};
use std::collections::HashMap;

pub const TABLE: &str = "LiteLLM_ProxyModelTable";
pub const CREDENTIALS: &str = "LiteLLM_CredentialsTable";

/// More named credentials than anybody has.
const MAX_CREDENTIALS: usize = 10_000;
/// How deep values are looked for secrets.
const MAX_DEPTH: u8 = 16;

/// Credentials by name: their values in plain text, or the field that does not open.
pub type Credentials = HashMap<String, Result<Map<String, Value>, (String, Closed)>>;

/// All models.
pub fn table() -> litellm::Table<'static> {
    litellm::Table {
        name: TABLE,
        id: "model_id",
        columns: vec![
            "model_id",
            "model_name",
            "litellm_params",
            "model_info",
            "blocked",
            "created_at",
            "created_by",
            "updated_at",
            "updated_by",
        ],
        beside: &[],
        label: &["model_name", "model_id"],
    }
}

/// All named credentials, opened.
pub async fn credentials(source: &Source, salts: &Salts) -> Result<Credentials, ReadError> {
    let mut out = Credentials::new();
    let table = litellm::Table {
        name: CREDENTIALS,
        id: "credential_name",
        columns: vec!["credential_name", "credential_values"],
        beside: &[],
        label: &["credential_name"],
    };
    let Some(cursor) = source.open(&table).await? else {
        return Ok(out);
    };
    loop {
        let page = source.next(&cursor).await?;
        if page.is_empty() {
            return Ok(out);
        }
        for raw in page {
            if let Ok(mut row) = Row::new(raw)
                && let Some(name) = row.text("credential_name")
                && out.len() < MAX_CREDENTIALS
            {
                let mut values = row.object("credential_values");
                let opened = open(&mut values, salts);
                out.insert(name, opened.map(|()| values));
            }
        }
    }
}

/// Makes a model of a row, its secrets in plain text; the error says why it is left.
pub fn wanted(row: &mut Row, salts: &Salts, credentials: &Credentials) -> Result<Wanted, String> {
    let id = row.text("model_id").ok_or("it has no id")?;
    if id_flaw(&id).is_some() {
        return Err("its id is longer than 512 bytes or holds control characters".into());
    }
    let name = row.id("model_name").ok_or("it has no name that can be called")?;
    let mut params = match row.take("litellm_params") {
        Some(Value::Object(params)) if !params.is_empty() => params,
        _ => return Err("its litellm_params are no object".into()),
    };
    open(&mut params, salts).map_err(|(field, why)| format!("litellm_params.{field}: {why}"))?;
    if let Some(Value::String(credential)) = params.get("litellm_credential_name").cloned() {
        match credentials.get(&credential) {
            Some(Ok(values)) => {
                params.remove("litellm_credential_name");
                for (field, value) in values {
                    params.entry(field.clone()).or_insert_with(|| value.clone());
                }
            }
            Some(Err((field, why))) => return Err(format!("its credential's {field}: {why}")),
            None => return Err("it names a credential that is not there".into()),
        }
    }
    if !params.get("model").is_some_and(Value::is_string) {
        return Err("litellm_params.model is missing".into());
    }
    let mut info = row.object("model_info");
    info.insert("id".into(), id.clone().into());
    let mut fields = Map::new();
    fields.insert("model_name".into(), name.into());
    fields.insert("litellm_params".into(), params.into());
    fields.insert("model_info".into(), info.into());
    fields.extend(row.read_all(&[
        ("blocked", Shape::Flag),
        ("created_by", Shape::Text),
        ("updated_by", Shape::Text),
    ]));
    let updated = row.micros("updated_at");
    let created = row.micros("created_at").or(updated).unwrap_or(0);
    Ok(Wanted {
        table: Table::Model,
        id,
        fields,
        created_at_micros: created,
        updated_at_micros: updated.unwrap_or(created),
        openings: Vec::new(),
    })
}

/// Opens every string of an object; the error names the field that stays closed. LiteLLM encrypts the
/// values of the object itself; what lies deeper is opened where it can be.
fn open(fields: &mut Map<String, Value>, salts: &Salts) -> Result<(), (String, Closed)> {
    for (name, value) in fields.iter_mut() {
        let opened = match value {
            Value::String(text) => salts.open(text).map(|secret| *text = secret.expose().to_string()),
            deeper => open_within(deeper, salts, MAX_DEPTH),
        };
        opened.map_err(|why| (name.clone(), why))?;
    }
    Ok(())
}

fn open_within(value: &mut Value, salts: &Salts, depth: u8) -> Result<(), Closed> {
    if depth == 0 {
        return Ok(());
    }
    match value {
        Value::String(text) => *text = salts.open_within(text)?.expose().to_string(),
        Value::Array(list) => {
            for value in list {
                open_within(value, salts, depth - 1)?;
            }
        }
        Value::Object(fields) => {
            for value in fields.values_mut() {
                open_within(value, salts, depth - 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}
