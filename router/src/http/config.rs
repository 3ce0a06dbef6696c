//! What the operator sets of the HTTP front door.

use std::path::PathBuf;

use cascadia_node::net::{Listener, NetError, check_address};

use crate::http::keys::Keys;

/// Where `up` and `router` serve HTTP where nothing is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// The front door's configuration.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpConfig {
    /// Where OpenAI's clients are served; `off` serves none.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_HTTP", default_value = DEFAULT_ADDRESS)]
    pub http: String,

    /// A file with one API key a line: requests to /v1 over HTTP must bring one of them as a bearer token. The variable
    /// CASCADIA_API_KEY holds one more.
    #[arg(long, value_name = "FILE", env = "CASCADIA_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
}

impl Default for HttpConfig {
    /// No HTTP: a port of everyone's is not taken by accident.
    fn default() -> Self {
        Self { http: OFF.to_owned(), api_key_file: None }
    }
}

/// The variable that holds a key itself. There is no flag for it: whoever lists processes would read it.
const VARIABLE: &str = "CASCADIA_API_KEY";

const OFF: &str = "off";

/// Why the front door cannot open.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error("{0}; --http names another address for OpenAI's clients, --http off serves none")]
    Net(#[from] NetError),
    /// The keys cannot be read.
    #[error("cannot read the API keys in {file}: {source}; name a file with one key a line")]
    Keys {
        /// Which file.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The variable's cannot be used.
    #[error(
        "{VARIABLE} is no API key: it must be visible ASCII characters without spaces; unset it to let everyone in"
    )]
    Unusable,
    /// There are none.
    #[error("{file} holds no API key: write one a line, or leave --api-key-file out to let everyone in")]
    NoKeys {
        /// Which file.
        file: String,
    },
}

/// A listener, and who may come in.
#[derive(Debug)]
pub struct Door {
    /// Where clients come.
    pub listener: Listener,
    /// Who may ask.
    pub keys: Keys,
}

impl HttpConfig {
    /// Opens the front door, if there is to be one.
    ///
    /// # Errors
    /// One sentence with the cure.
    pub async fn open(&self) -> Result<Option<Door>, HttpError> {
        if self.http == OFF {
            return Ok(None);
        }
        let keys = self.keys()?;
        Ok(Some(Door { listener: Listener::bind(&self.http).await?, keys }))
    }

    /// Refuses what cannot be meant, without listening.
    ///
    /// # Errors
    /// One sentence with the cure.
    pub fn check(&self) -> Result<(), HttpError> {
        if self.http == OFF {
            return Ok(());
        }
        check_address(&self.http)?;
        self.keys().map(drop)
    }

    fn keys(&self) -> Result<Keys, HttpError> {
        let mut keys = Keys::default();
        // Whatever stands there was meant to keep people out; only an empty variable is how one is unset for a child.
        if let Some(key) = std::env::var_os(VARIABLE).filter(|key| !key.is_empty()) {
            let key = key.into_string().ok().filter(|key| key.bytes().all(|byte| byte.is_ascii_graphic()));
            keys.add(key.ok_or(HttpError::Unusable)?);
        }
        if let Some(path) = &self.api_key_file {
            let file = path.display().to_string();
            let text =
                std::fs::read_to_string(path).map_err(|source| HttpError::Keys { file: file.clone(), source })?;
            let of_file = Keys::of_lines(&text);
            if of_file.is_empty() {
                return Err(HttpError::NoKeys { file });
            }
            keys.extend(of_file);
        }
        Ok(keys)
    }
}
