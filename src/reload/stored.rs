//! The models that are kept in the store, as the config would have them. One that cannot be used must not
//! take the others with it.

use super::{MOST_STORED, Reload, Turn};
use crate::conf::{self, Conf, ModelEntry, Report, Severity};
use crate::proxy::models::{self, Models};
use crate::store::seal::Seal;
use crate::store::{Doc, DocFilter, MAX_ROWS, Page, StoreError, Table};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

impl Reload {
    /// All of them, the oldest first.
    pub(super) async fn stored(&self) -> Result<Vec<Doc>, StoreError> {
        let mut docs: Vec<Doc> = Vec::new();
        while docs.len() < MOST_STORED {
            let filter = DocFilter {
                page: Page {
                    limit: MAX_ROWS,
                    offset: docs.len() as u64,
                },
                ..DocFilter::default()
            };
            let page = self.store.documents(Table::Model, &filter).await?;
            let last = page.docs.len() < MAX_ROWS as usize;
            docs.extend(page.docs);
            if last {
                break;
            }
        }
        docs.truncate(MOST_STORED);
        // By age, as a list in a file grows.
        docs.sort_by(|a, b| (a.created_at_micros, &a.id).cmp(&(b.created_at_micros, &b.id)));
        Ok(docs)
    }

    /// Adds the stored models that can be used. One that cannot must not take the others with it.
    pub(super) fn take_in(&self, conf: &mut Conf, turn: &mut Turn) {
        let mut taken: std::collections::HashSet<String> = conf.models.iter().map(models::id).collect();
        let mut built = HashMap::with_capacity(turn.stored.len());
        for doc in &turn.stored {
            let entry = match turn.built.remove(&doc.id) {
                Some((version, entry)) if version == doc.version && version > 0 => entry,
                _ => {
                    let entry = self.entry(doc, conf);
                    if let Err(why) = &entry {
                        log::warn!("event=model_left_out id={:?} cause={why:?}", doc.id);
                    }
                    entry
                }
            };
            if let Ok(entry) = &entry {
                if taken.insert(models::id(entry)) {
                    conf.models.push(entry.clone());
                } else {
                    log::warn!(
                        "event=model_left_out id={:?} cause=\"the config has this id\"",
                        doc.id
                    );
                }
            }
            built.insert(doc.id.clone(), (doc.version, entry));
        }
        turn.built = built;
    }

    /// Whether a stored model can be used, and how. `Err` is what is wrong with it.
    pub async fn check(&self, doc: &Doc) -> Result<ModelEntry, String> {
        let conf = Arc::clone(&self.turn.lock().await.conf);
        self.entry(doc, &conf)
    }

    /// A stored model as the config would have it. `Err` says what is wrong with it, in one line or more.
    fn entry(&self, doc: &Doc, of: &Conf) -> Result<ModelEntry, String> {
        let mut fields = doc.fields.clone();
        for (name, value) in &mut fields {
            unseal(name, value, &self.seal).map_err(|name| {
                format!("its {name} cannot be decrypted: was it stored under another salt key?")
            })?;
        }
        let info = fields
            .entry("model_info".to_string())
            .or_insert_with(|| json!({}));
        if let Value::Object(info) = info {
            info.insert("id".into(), doc.id.clone().into());
            if info
                .get("team_id")
                .is_some_and(|t| !t.is_null() && *t != json!(""))
            {
                return Err(
                    "model_info.team_id: models of one team alone are not supported; give the team's keys the \
                     model by its name"
                        .into(),
                );
            }
        }
        let entry: BTreeMap<&str, &Value> = ["model_name", "litellm_params", "model_info"]
            .into_iter()
            .filter_map(|name| Some((name, fields.get(name)?)))
            .collect();
        // JSON is YAML, so a stored model goes the way of one in a file.
        let text = json!({"model_list": [entry]}).to_string();
        let mut conf = conf::load_text("database", &text, &of.env)
            .map_err(|r| errors(&r))?
            .conf;
        if let Some(skipped) = conf.skipped.first() {
            return Err(format!(
                "provider {} is not spoken yet",
                skipped.params.provider.name
            ));
        }
        // Built alone, so that what cannot be built is found before it stands among the others.
        Models::new(&conf)?;
        let mut entry = conf.models.pop().ok_or("it is no model")?;
        entry.stored = true;
        let about = json!({
            "created_at": Timestamp::from_microsecond(doc.created_at_micros).ok().map(|t| format!("{t:.6}")),
            "updated_at": Timestamp::from_microsecond(doc.updated_at_micros).ok().map(|t| format!("{t:.6}")),
            "created_by": doc.fields.get("created_by"),
            "updated_by": doc.fields.get("updated_by"),
        });
        if let Value::Object(about) = about {
            entry.info.all.extend(about);
        }
        Ok(entry)
    }
}

/// Opens what is sealed, wherever it stands. `Err` names the field.
fn unseal(name: &str, value: &mut Value, seal: &Seal) -> Result<(), String> {
    match value {
        Value::String(text) if Seal::is_sealed(text) => match seal.open(text) {
            Ok(plain) => {
                *text = plain.expose().to_string();
                Ok(())
            }
            Err(_) => Err(name.to_string()),
        },
        Value::Object(fields) => fields
            .iter_mut()
            .try_for_each(|(name, value)| unseal(name, value, seal)),
        Value::Array(items) => items.iter_mut().try_for_each(|v| unseal(name, v, seal)),
        _ => Ok(()),
    }
}

/// What is wrong, without lines: the text they stand in is nobody's file.
fn errors(report: &Report) -> String {
    let errors = report.problems.iter().filter(|p| p.severity == Severity::Error);
    let said: Vec<String> = errors
        .map(|p| match p.help.as_ref().or(p.label.as_ref()) {
            Some(more) => format!("{} ({more})", p.message),
            None => p.message.clone(),
        })
        .collect();
    said.join("; ")
}
