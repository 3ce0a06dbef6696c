//! What an etcd of somebody else's wants to see before it answers: TLS on the way, a certificate, a name and a password.

use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

/// The variable that holds the password itself. There is no flag for it: whoever lists processes would read it.
const PASSWORD: &str = "CASCADIA_ETCD_PASSWORD";

/// How etcd is asked. Each field is a flag and a `CASCADIA_*` variable; files are read again at each connection, so that
/// what is renewed is taken up.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Membership")]
pub struct EtcdAccess {
    /// A file with the certificates (PEM) of whom vouches for an etcd at https://
    #[arg(long, value_name = "FILE", env = "CASCADIA_ETCD_CA_FILE")]
    pub etcd_ca_file: Option<PathBuf>,
    /// A file with the certificate (PEM) that is shown to etcd, where it asks for one
    #[arg(long, value_name = "FILE", env = "CASCADIA_ETCD_CERT_FILE", requires = "etcd_key_file")]
    pub etcd_cert_file: Option<PathBuf>,
    /// A file with that certificate's key (PEM)
    #[arg(long, value_name = "FILE", env = "CASCADIA_ETCD_KEY_FILE", requires = "etcd_cert_file")]
    pub etcd_key_file: Option<PathBuf>,
    /// The name that is told to etcd, where it asks for names and passwords
    #[arg(long, value_name = "NAME", env = "CASCADIA_ETCD_USER")]
    pub etcd_user: Option<String>,
    /// A file with that name's password; CASCADIA_ETCD_PASSWORD holds the password itself instead
    #[arg(long, value_name = "FILE", env = "CASCADIA_ETCD_PASSWORD_FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
}

impl Default for EtcdAccess {
    fn default() -> Self {
        crate::config::defaults_of(&[])
    }
}

impl EtcdAccess {
    /// Refuses what cannot be meant of these endpoints.
    ///
    /// # Errors
    /// One sentence with the cure.
    pub(super) fn check(&self, endpoints: &[String]) -> Result<(), String> {
        let secure = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure != 0 && secure != endpoints.len() {
            return Err("some addresses are https:// and some are not; write all of them alike".into());
        }
        match (&self.etcd_ca_file, &self.etcd_cert_file, &self.etcd_key_file) {
            (None, ..) if secure > 0 => {
                Err(format!("{} needs --etcd-ca-file FILE, with the certificates that vouch for it", endpoints[0]))
            }
            (Some(_), ..) | (_, Some(_), _) | (.., Some(_)) if secure == 0 => {
                Err("certificates are for addresses at https://; write https://host:port, or leave them out".into())
            }
            (_, Some(_), None) | (_, None, Some(_)) => Err("give --etcd-cert-file and --etcd-key-file together".into()),
            _ => Ok(()),
        }?;
        self.options(ConnectOptions::new()).map(drop)
    }

    /// Adds what is shown and expected to a connection's options.
    ///
    /// # Errors
    /// One sentence that names the file that cannot be read, or the password that is missing.
    pub(super) fn options(&self, mut options: ConnectOptions) -> Result<ConnectOptions, String> {
        if let Some(ca) = &self.etcd_ca_file {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(certificate), Some(key)) = (&self.etcd_cert_file, &self.etcd_key_file) {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        if let Some(user) = &self.etcd_user {
            options = options.with_user(user, self.password()?).with_auto_token_refresh(true);
        }
        Ok(options)
    }

    fn password(&self) -> Result<String, String> {
        match &self.etcd_password_file {
            Some(file) => {
                let text = String::from_utf8(read(file)?).map_err(|_| format!("{} is not UTF-8", file.display()))?;
                Ok(text.trim_end_matches(['\n', '\r']).to_owned())
            }
            None => std::env::var(PASSWORD).map_err(|_| {
                format!("a user is given and no password; give --etcd-password-file FILE or set {PASSWORD}")
            }),
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file)
        .map_err(|error| format!("{} cannot be read: {error}; check the path and who may read it", file.display()))
}
