//! The messages of `/v1/chat/completions`: a question with an image, and what comes back. Pure.

use crate::client::Options;
use crate::counts::Usage;
use crate::error::Fault;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Largest image that is sent. Servers refuse larger requests.
const IMAGE_BYTES_MAX: usize = 20 << 20;
/// Beginning of an answer that is shown in messages.
const SHOWN_CHARACTERS: usize = 200;
/// Beginnings by which models decline in words, in lower case. An answer of few words about an
/// image does not begin like this.
const REFUSALS: [&str; 10] = [
    "i'm sorry",
    "i am sorry",
    "i’m sorry",
    "sorry,",
    "i cannot",
    "i can't",
    "i can’t",
    "i'm unable",
    "i am unable",
    "as an ai",
];

/// What a model said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// An answer, without white space around it.
    Text(String),
    /// It declined: by the protocol's `refusal`, by a content filter, or in words.
    Refusal(String),
    /// Nothing, or white space.
    Empty,
}

/// What is read of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) reply: Reply,
    /// It ends where the limit of tokens was reached.
    pub(crate) truncated: bool,
    pub(crate) usage: Usage,
    /// The name that the server gives its model, which may tell more than the one that was asked.
    pub(crate) model: Option<String>,
}

/// The body of a request.
pub(crate) fn request(options: &Options, question: &str, image: &[u8]) -> Result<Value, Fault> {
    let url = format!(
        "data:{};base64,{}",
        media_type(image)?,
        STANDARD.encode(image)
    );
    let mut body = json!({
        "model": options.model,
        "messages": [{
            "role": "user",
            "content": [
                {"type": "text", "text": question},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        }],
        "temperature": 0,
        "seed": options.seed,
        "max_tokens": options.max_tokens,
        "stream": false,
    });
    let fields = body.as_object_mut().expect("an object");
    fields.extend(options.extra.clone());
    Ok(body)
}

/// By its first bytes.
fn media_type(image: &[u8]) -> Result<&'static str, Fault> {
    if image.len() > IMAGE_BYTES_MAX {
        return Err(Fault::Image(format!(
            "has {} bytes; at most {IMAGE_BYTES_MAX} are sent",
            image.len()
        )));
    }
    match image {
        [0x89, b'P', b'N', b'G', ..] => Ok("image/png"),
        [0xff, 0xd8, 0xff, ..] => Ok("image/jpeg"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Ok("image/webp"),
        _ => Err(Fault::Image("is no PNG, JPEG or WebP".to_owned())),
    }
}

/// Reads the body of an answer.
pub(crate) fn completion(body: &[u8]) -> Result<Completion, Fault> {
    #[derive(Deserialize)]
    struct Body {
        choices: Vec<Choice>,
        #[serde(default)]
        usage: Option<Usage>,
        #[serde(default)]
        model: Option<String>,
    }
    #[derive(Deserialize)]
    struct Choice {
        message: Message,
        #[serde(default)]
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        content: Option<String>,
        #[serde(default)]
        refusal: Option<String>,
    }
    let nonsense = |problem: String| Fault::Nonsense(format!("{problem}: {}", shown(body)));
    let body: Body = serde_json::from_slice(body).map_err(|error| nonsense(error.to_string()))?;
    let Some(choice) = body.choices.into_iter().next() else {
        return Err(Fault::Nonsense("it has no choices".to_owned()));
    };
    let finish = choice.finish_reason.as_deref();
    let text = choice.message.content.unwrap_or_default().trim().to_owned();
    let lower = text.to_lowercase();
    let reply = match choice.message.refusal {
        Some(refusal) => Reply::Refusal(refusal),
        None if finish == Some("content_filter") => Reply::Refusal(text),
        None if text.is_empty() => Reply::Empty,
        None if REFUSALS.iter().any(|it| lower.starts_with(it)) => Reply::Refusal(text),
        None => Reply::Text(text),
    };
    Ok(Completion {
        reply,
        truncated: finish == Some("length"),
        usage: body.usage.unwrap_or_default(),
        model: body.model,
    })
}

/// The names in the body of `/v1/models`.
pub(crate) fn models(body: &[u8]) -> Result<Vec<String>, Fault> {
    #[derive(Deserialize)]
    struct Body {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let parsed: Result<Body, _> = serde_json::from_slice(body);
    let parsed = parsed.map_err(|error| Fault::Nonsense(format!("{error}: {}", shown(body))))?;
    Ok(parsed.data.into_iter().map(|it| it.id).collect())
}

/// The beginning of a body as one printable line.
pub(crate) fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let printable = text
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it });
    let line: String = printable.take(SHOWN_CHARACTERS).collect();
    line.trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG rest";

    fn read(body: &Value) -> Result<Completion, Fault> {
        completion(body.to_string().as_bytes())
    }

    fn message(message: Value) -> Value {
        json!({"choices": [{"message": message}]})
    }

    #[test]
    fn a_request_has_the_question_and_the_image_as_a_data_url() {
        let mut options = Options::new("http://localhost:1", "m");
        options.extra.insert("top_k".into(), json!(1));
        let body = request(&options, "Where?", PNG).unwrap();
        assert_eq!(body["model"], "m");
        assert_eq!(body["temperature"], 0);
        assert_eq!(body["top_k"], 1);
        let content = &body["messages"][0]["content"];
        assert_eq!(content[0], json!({"type": "text", "text": "Where?"}));
        let url = content[1]["image_url"]["url"].as_str().unwrap();
        assert_eq!(url, "data:image/png;base64,iVBORyByZXN0");
        let refused = request(&options, "Where?", b"GIF89a").unwrap_err();
        assert_eq!(refused.to_string(), "the image is no PNG, JPEG or WebP");
        let large = [PNG, &vec![0; IMAGE_BYTES_MAX]].concat();
        assert!(request(&options, "Where?", &large).is_err());
    }

    #[test]
    fn answers_refusals_and_silence_are_told_apart() {
        let of = |content: Value| read(&message(json!({"content": content}))).unwrap().reply;
        assert_eq!(
            of(json!(" to the left\n")),
            Reply::Text("to the left".into())
        );
        assert_eq!(of(json!("  ")), Reply::Empty);
        assert_eq!(of(json!(null)), Reply::Empty);
        let declined = "I'm sorry, but I can't help with that.";
        assert_eq!(of(json!(declined)), Reply::Refusal(declined.into()));
        let refusal = json!({"content": null, "refusal": "no"});
        assert_eq!(
            read(&message(refusal)).unwrap().reply,
            Reply::Refusal("no".into())
        );
        let filtered = json!({"choices": [{"message": {"content": ""},
            "finish_reason": "content_filter"}]});
        assert_eq!(
            read(&filtered).unwrap().reply,
            Reply::Refusal(String::new())
        );
    }

    #[test]
    fn usage_length_and_model_are_read_where_they_are() {
        let full = json!({"model": "m-7b", "choices": [{"message": {"content": "a"},
            "finish_reason": "length"}],
            "usage": {"prompt_tokens": 300, "completion_tokens": 16, "total_tokens": 316}});
        let found = read(&full).unwrap();
        assert!(found.truncated && found.model.as_deref() == Some("m-7b"));
        assert_eq!(
            (found.usage.prompt_tokens, found.usage.completion_tokens),
            (300, 16)
        );
        let bare = read(&message(json!({"content": "a"}))).unwrap();
        assert_eq!((bare.truncated, bare.usage), (false, Usage::default()));
    }

    #[test]
    fn nonsense_is_shown_in_one_short_line() {
        let error = completion(format!("<html>\n{}", "x".repeat(999)).as_bytes()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("<html> xxx") && text.len() < 400, "{text}");
        assert!(!text.contains('\n'));
        assert!(read(&json!({"choices": []})).is_err());
        assert!(models(b"{}").is_err());
        let list = br#"{"object": "list", "data": [{"id": "a"}, {"id": "b"}]}"#;
        assert_eq!(models(list).unwrap(), ["a", "b"]);
    }
}
