//! What the config says about new keys: `default_key_generate_params`, `upperbound_key_generate_params`
//! and `key_generation_settings` of `litellm_settings`.

use super::duration;
use super::error::{Result, forbidden, wrong_value};
use super::fields::{self, Fields, Kind};
use super::keys;
use super::rights::Actor;
use super::terms;
use filters::model::money::Nanos;
use filters::model::party::texts;
use serde_json::{Map, Value, json};

/// The rules of one generation of the config.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    defaults: Map<String, Value>,
    most: Map<String, Value>,
    team: Map<String, Value>,
    personal: Map<String, Value>,
    budget: Option<Nanos>,
}

impl Policy {
    /// From `litellm_settings` as it is written. `Err` is a sentence about what is wrong there.
    pub fn of(settings: &Map<String, Value>) -> std::result::Result<Self, String> {
        let object = |of: &Map<String, Value>, name: &str| match of.get(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map.clone()),
            Some(_) => Err(format!("litellm_settings.{name} must be a mapping")),
        };
        let defaults = object(settings, "default_key_generate_params")?;
        let most = object(settings, "upperbound_key_generate_params")?;
        for (section, map) in [
            ("default_key_generate_params", &defaults),
            ("upperbound_key_generate_params", &most),
        ] {
            for (name, value) in map.iter().filter(|(_, v)| !v.is_null()) {
                let kind = kind_of(name);
                let kind =
                    kind.ok_or_else(|| format!("litellm_settings.{section}: no key has a field {name}"))?;
                kind.read(name, value)
                    .map_err(|e| format!("litellm_settings.{section}: {}", e.0.shown()))?;
            }
        }
        let generation = object(settings, "key_generation_settings")?;
        Ok(Self {
            defaults,
            most,
            team: object(&generation, "team_key_generation")?,
            personal: object(&generation, "personal_key_generation")?,
            // Judged where the config is read.
            budget: settings
                .get("max_budget")
                .and_then(|v| fields::amount("max_budget", v).ok()),
        })
    }

    /// What the whole gateway may spend in its period.
    pub fn budget(&self) -> Option<Nanos> {
        self.budget
    }

    /// Puts in what a new key has unless it is said otherwise.
    pub fn fill(&self, fields: &mut Fields) {
        for (name, value) in &self.defaults {
            let unset = fields
                .value(name)
                .is_none_or(|v| *v == json!([]) || *v == json!({}));
            if unset {
                fields.set(name, value.clone());
            }
        }
    }

    /// Refuses what lies above the config's bounds; a new key that says nothing gets the bound itself.
    pub fn cut(&self, fields: &mut Fields, now_micros: i64, new: bool) -> Result<()> {
        for (name, most) in self.most.iter().filter(|(_, v)| !v.is_null()) {
            let Some(given) = fields.value(name) else {
                // null on an update takes a bound away.
                if new || fields.has(name) {
                    fields.set(name, most.clone());
                }
                continue;
            };
            // LiteLLM's word for "never".
            let never = name == "duration" && given.as_str() == Some("-1");
            if never || size(name, given, now_micros)? > size(name, most, now_micros)? {
                let message =
                    format!("{name} is over max limit set in config - user_value={given}; max_value={most}");
                return Err(wrong_value(name, message).into());
            }
        }
        Ok(())
    }

    /// Whether this actor may make a key like this at all.
    pub fn check_maker(&self, actor: &Actor, team_role: Option<&str>, fields: &Fields) -> Result<()> {
        let for_team = fields.value("team_id").is_some();
        let (rules, list, role, what) = if for_team {
            let role = team_role.unwrap_or("none");
            (&self.team, "allowed_team_member_roles", role, "Team")
        } else {
            (
                &self.personal,
                "allowed_user_roles",
                actor.role.as_str(),
                "Personal",
            )
        };
        let allowed = texts(rules, list);
        if !actor.is_admin() && rules.contains_key(list) && !allowed.iter().any(|r| r == role) {
            return Err(forbidden(format!(
                "{what} key creation has been restricted by admin. Allowed roles={allowed:?}. Your role={role}"
            ))
            .into());
        }
        for name in texts(rules, "required_params") {
            if fields.value(&name).is_none() {
                let message =
                    format!("Required param {name} not in data: the config wants it of every such key.");
                return Err(wrong_value(&name, message).into());
            }
        }
        Ok(())
    }
}

fn kind_of(name: &str) -> Option<Kind> {
    let known = keys::PLAIN.iter().chain(terms::TERMS);
    known.into_iter().find(|f| f.name == name).map(|f| f.kind)
}

/// How large a value is, for comparison with another of the same field.
fn size(name: &str, value: &Value, now_micros: i64) -> Result<i64> {
    match kind_of(name) {
        Some(Kind::Money) => Ok(fields::amount(name, value)?.0),
        Some(Kind::Count) => Ok(i64::try_from(fields::count(name, value)?).unwrap_or(i64::MAX)),
        Some(Kind::Period) => {
            let text = value.as_str().unwrap_or_default();
            duration::after(now_micros, text).map_err(|e| wrong_value(name, format!("'{name}' {e}.")).into())
        }
        // Nothing else has a size.
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(settings: Value) -> std::result::Result<Policy, String> {
        Policy::of(settings.as_object().unwrap())
    }

    #[test]
    fn bounds_fill_and_refuse() {
        let policy =
            policy(json!({"upperbound_key_generate_params": {"max_budget": 10, "duration": "30d"}})).unwrap();
        let mut fields = Fields::of(Map::new());
        policy.cut(&mut fields, 0, true).unwrap();
        assert_eq!(fields.value("max_budget"), Some(&json!(10)));
        assert_eq!(fields.value("duration"), Some(&json!("30d")));
        for (name, value) in [
            ("max_budget", json!(10.01)),
            ("duration", json!("31d")),
            ("duration", json!("-1")),
        ] {
            let mut fields = Fields::of(Map::from_iter([(name.to_string(), value)]));
            assert!(policy.cut(&mut fields, 0, false).is_err(), "{name}");
        }
    }

    #[test]
    fn a_config_that_means_nothing_is_said() {
        for settings in [
            json!({"default_key_generate_params": 1}),
            json!({"default_key_generate_params": {"max_budgt": 1}}),
            json!({"upperbound_key_generate_params": {"max_budget": "much"}}),
        ] {
            assert!(policy(settings).is_err());
        }
    }
}
