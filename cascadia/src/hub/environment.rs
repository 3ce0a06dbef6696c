//! Where the hub is and who asks, as the variables of Hugging Face's tools say.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::Uri;

use super::error::HubError;
use crate::terminal::Failure;

/// Where the hub is, where its files are kept, and who asks.
#[derive(Clone, Debug)]
pub struct Hub {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or what `hf auth login` left.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl Hub {
    /// As the variables of Hugging Face's tools say.
    ///
    /// # Errors
    /// When there is no home to keep files in, or the hub would be asked over a connection that anybody can change.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = given("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = given("XDG_CACHE_HOME").map(PathBuf::from);
            Some(cache.or_else(|| given("HOME").map(|home| Path::new(&home).join(".cache")))?.join("huggingface"))
        });
        let cache = given("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("hub")));
        let cache = cache.ok_or("there is no place for models of the hub; set HF_HOME to a folder")?;
        let saved = || {
            let file = given("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home.map(|home| home.join("token")))?;
            Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
        };
        let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        let endpoint = given("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let (endpoint, offline) = (endpoint.trim_end_matches('/').to_owned(), given("HF_HUB_OFFLINE").is_some_and(on));
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| format!("HF_ENDPOINT is {endpoint:?} ({error}); write it as https://huggingface.co"))?;
        if !offline && !is_safe(&uri) {
            return Err(HubError::Plain { address: endpoint }.to_string().into());
        }
        Ok(Self {
            endpoint,
            cache,
            token: given("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned()).filter(|t| !t.is_empty()),
            offline,
        })
    }
}

/// Whether nobody on the way to an address can read or change anything: it is asked over TLS, or on this machine.
pub(super) fn is_safe(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    is_local || address.scheme_str() != Some("http")
}
