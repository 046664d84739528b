//! As much of JSON Schema as docs/json-schema.json uses. A keyword that is not known here fails, so that the schema
//! cannot say more than is checked.

use serde_json::Value;

/// The schema of the documentation.
fn schema() -> Value {
    serde_json::from_str(include_str!("../../docs/json-schema.json")).unwrap()
}

/// Requires a document to be as the schema says for a command, without keys that the schema does not name.
pub fn require(command: &str, document: &Value) {
    let schema = schema();
    let wanted = &schema["commands"][command];
    assert!(wanted.is_object(), "docs/json-schema.json has no command {command}");
    if let Err(problem) = check(&schema, wanted, document, "$") {
        panic!("{command}: {problem}\n{document:#}");
    }
}

fn check(root: &Value, wanted: &Value, value: &Value, path: &str) -> Result<(), String> {
    const MOST: f64 = 9_007_199_254_740_992.0;
    if value.as_f64().is_some_and(|number| number.abs() > MOST) {
        return Err(format!("{path} is larger than 2^53"));
    }
    let keywords = wanted.as_object().unwrap();
    for (keyword, said) in keywords {
        match keyword.as_str() {
            "$ref" => {
                let name = said.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                check(root, &root["$defs"][name], value, path)?;
            }
            "type" => {
                let types: Vec<&str> = match said {
                    Value::Array(types) => types.iter().map(|word| word.as_str().unwrap()).collect(),
                    word => vec![word.as_str().unwrap()],
                };
                if !types.iter().any(|word| is(word, value)) {
                    return Err(format!("{path} is not {}", types.join(" or ")));
                }
            }
            "enum" => {
                if !said.as_array().unwrap().contains(value) {
                    return Err(format!("{path} is {value}, not one of {said}"));
                }
            }
            "pattern" => {
                let pattern = regex::Regex::new(said.as_str().unwrap()).unwrap();
                if !value.as_str().is_some_and(|text| pattern.is_match(text)) {
                    return Err(format!("{path} is {value}, not as {said}"));
                }
            }
            "required" => {
                for key in said.as_array().unwrap() {
                    if value.get(key.as_str().unwrap()).is_none() {
                        return Err(format!("{path} has no {key}"));
                    }
                }
            }
            "properties" => {
                for (key, wanted) in said.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        check(root, wanted, value, &format!("{path}.{key}"))?;
                    }
                }
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, said, item, &format!("{path}[{n}]"))?;
                }
            }
            "anyOf" => {
                let problems: Vec<String> =
                    (said.as_array().unwrap().iter()).filter_map(|wanted| check(root, wanted, value, path).err()).collect();
                if problems.len() == said.as_array().unwrap().len() {
                    return Err(problems.join("; "));
                }
            }
            other => panic!("docs/json-schema.json uses {other}, which this test does not know"),
        }
    }
    Ok(())
}

fn is(word: &str, value: &Value) -> bool {
    match word {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("docs/json-schema.json has the unknown type {other}"),
    }
}
