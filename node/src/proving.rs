//! Proofs that both ends of an admin call know the token, which itself never travels.
//!
//! A node gives out a nonce of its own. Whoever asks sends back an HMAC-SHA256 under the token over all that is meant: the
//! node, its start, the nonce, a nonce of the asker's, the method and the path. So a proof is of use to that start of that node
//! for that call, once. The node's answer carries an HMAC over the same, which nobody else can make.
//!
//! Nonces are not kept until they are used: each carries when it was made and the node's own mark, so asking for many takes
//! nothing from anybody.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cascadia_core::ids::NodeId;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::token::Token;

/// The scheme of `Authorization`; behind it the node's nonce, the asker's and the proof, with dots between.
pub const SCHEME: &str = "Cascadia-HMAC-SHA256";

/// The header with the node's own proof.
pub const ANSWER: &str = "authentication-info";

/// How long a nonce is good for.
const LIFETIME: Duration = Duration::from_secs(30);

/// Nonces that were used and are not too old yet. Only who knows the token adds one.
const MOST_USED: usize = 1_024;

/// Random bytes of a nonce.
const CHANCE: usize = 16;

/// Bytes of an HMAC.
const TAG: usize = 32;

/// What a node says of itself to whoever wants to ask it something.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Challenge {
    /// Its name.
    pub node: String,
    /// Which start of it, 16 hexadecimal digits.
    pub instance: String,
    /// To be sent back.
    pub nonce: String,
}

/// The node's side.
pub struct Proving {
    token: Token,
    node: String,
    instance: String,
    /// Marks nonces as ours.
    mark: hmac::Key,
    began: Instant,
    used: Mutex<VecDeque<(Instant, String)>>,
}

impl fmt::Debug for Proving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proving").field("node", &self.node).field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Proving {
    /// Of one start of a node, with the token that it was given.
    ///
    /// # Panics
    /// When the system has no random numbers.
    #[must_use]
    pub fn new(token: Token, node: &NodeId, instance: u64) -> Self {
        let mark = hmac::Key::generate(HMAC_SHA256, &SystemRandom::new()).expect("the system has random numbers");
        let (node, instance) = (node.0.clone(), format!("{instance:016x}"));
        Self { token, node, instance, mark, began: Instant::now(), used: Mutex::default() }
    }

    /// Whether a request shows the token itself.
    #[must_use]
    pub fn is_shown(&self, headers: &HeaderMap) -> bool {
        self.token.is_shown(headers)
    }

    /// What the next call is to be proven over.
    #[must_use]
    pub fn challenge(&self) -> Challenge {
        self.challenge_at(Instant::now())
    }

    fn challenge_at(&self, now: Instant) -> Challenge {
        let age = u64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let mut nonce = age.to_be_bytes().to_vec();
        nonce.extend(chance());
        let mark = hmac::sign(&self.mark, &nonce);
        nonce.extend(mark.as_ref());
        Challenge { node: self.node.clone(), instance: self.instance.clone(), nonce: hex(&nonce) }
    }

    /// What [`ANSWER`] is to say, where the request proves that its sender knows the token.
    #[must_use]
    pub fn proven(&self, headers: &HeaderMap, method: &str, path: &str) -> Option<String> {
        self.proven_at(headers.get(AUTHORIZATION)?.to_str().ok()?, method, path, Instant::now())
    }

    fn proven_at(&self, authorization: &str, method: &str, path: &str, now: Instant) -> Option<String> {
        let (scheme, proof) = authorization.split_once(' ')?;
        let mut parts = proof.split('.');
        let (nonce, own, proof) = (parts.next()?, parts.next()?, unhex(parts.next()?)?);
        if !scheme.eq_ignore_ascii_case(SCHEME) || parts.next().is_some() || !self.is_fresh(nonce, now) {
            return None;
        }
        let challenge = Challenge { node: self.node.clone(), instance: self.instance.clone(), nonce: nonce.to_owned() };
        let call = Call::new(&self.token, &challenge, own, method, path);
        call.verify(ASKS, &proof).then_some(())?;
        self.use_up(nonce, now).then(|| hex(&call.sign(DOES)))
    }

    /// Whether a nonce is one of ours, and not too old.
    fn is_fresh(&self, nonce: &str, now: Instant) -> bool {
        let made = || {
            let nonce = unhex(nonce).filter(|nonce| nonce.len() == 8 + CHANCE + TAG)?;
            let (content, mark) = nonce.split_at(8 + CHANCE);
            hmac::verify(&self.mark, content, mark).ok()?;
            let age = u64::from_be_bytes(content[..8].try_into().ok()?);
            Some(self.began + Duration::from_millis(age))
        };
        made().is_some_and(|made| now.saturating_duration_since(made) <= LIFETIME)
    }

    /// Whether a nonce is used for the first time.
    fn use_up(&self, nonce: &str, now: Instant) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|(since, _)| now.saturating_duration_since(*since) <= LIFETIME);
        // Digits may be written large or small.
        let nonce = nonce.to_ascii_lowercase();
        let is_new = used.len() < MOST_USED && used.iter().all(|(_, known)| *known != nonce);
        if is_new {
            used.push_back((now, nonce));
        }
        is_new
    }
}

/// The asker's side of one call.
#[derive(Debug)]
pub struct Asking {
    call: Call,
    authorization: String,
}

impl Asking {
    /// Answers a challenge for one call.
    ///
    /// # Panics
    /// When the system has no random numbers.
    #[must_use]
    pub fn new(token: &Token, challenge: &Challenge, method: &str, path: &str) -> Self {
        let own = hex(&chance());
        let call = Call::new(token, challenge, &own, method, path);
        let proof = hex(&call.sign(ASKS));
        Self { call, authorization: format!("{SCHEME} {}.{own}.{proof}", challenge.nonce) }
    }

    /// What to send in `Authorization`.
    #[must_use]
    pub fn authorization(&self) -> &str {
        &self.authorization
    }

    /// Whether what came in [`ANSWER`] is by somebody who knows the token.
    #[must_use]
    pub fn is_answered_by(&self, answer: &[u8]) -> bool {
        let proof = std::str::from_utf8(answer).ok().and_then(unhex);
        proof.is_some_and(|proof| self.call.verify(DOES, &proof))
    }
}

/// Who signs; so no end's proof is the other's.
const ASKS: u8 = 1;
const DOES: u8 = 2;

/// All that is meant, and the key that it is signed with.
#[derive(Debug)]
struct Call {
    key: hmac::Key,
    meant: Vec<u8>,
}

impl Call {
    fn new(token: &Token, challenge: &Challenge, own: &str, method: &str, path: &str) -> Self {
        let Challenge { node, instance, nonce } = challenge;
        let mut meant = Vec::new();
        for field in ["cascadia admin call 1", node, instance, nonce, own, method, path] {
            // Its length first: no two lists of fields are the same bytes.
            meant.extend((field.len() as u64).to_be_bytes());
            meant.extend(field.bytes());
        }
        Self { key: hmac::Key::new(HMAC_SHA256, token.secret()), meant }
    }

    fn by(&self, who: u8) -> Vec<u8> {
        let mut signed = vec![who];
        signed.extend(&self.meant);
        signed
    }

    fn sign(&self, who: u8) -> Vec<u8> {
        hmac::sign(&self.key, &self.by(who)).as_ref().to_vec()
    }

    fn verify(&self, who: u8, proof: &[u8]) -> bool {
        hmac::verify(&self.key, &self.by(who), proof).is_ok()
    }
}

fn chance() -> [u8; CHANCE] {
    let mut bytes = [0; CHANCE];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2);
    pairs.map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Token {
        Token::new(text, "a test").unwrap()
    }

    fn proving(node: &str, instance: u64) -> Proving {
        Proving::new(token("secret"), &NodeId(node.into()), instance)
    }

    #[test]
    fn both_ends_prove_that_they_know_the_token() {
        let (node, now) = (proving("d7", 5), Instant::now());
        let asking = Asking::new(&token("secret"), &node.challenge_at(now), "POST", "/drain");
        assert!(!asking.authorization().contains("secret"));
        let answer = node.proven_at(asking.authorization(), "POST", "/drain", now).unwrap();
        assert!(asking.is_answered_by(answer.as_bytes()));
        // Nothing that a listener has heard is the node's answer.
        let heard = asking.authorization().rsplit('.').next().unwrap();
        for forged in ["", "00", heard, &answer[..62]] {
            assert!(!asking.is_answered_by(forged.as_bytes()), "{forged}");
        }
        let again = Asking::new(&token("secret"), &node.challenge_at(now), "POST", "/drain");
        assert!(!again.is_answered_by(answer.as_bytes()), "an answer of before is none");
    }

    #[test]
    fn a_proof_is_good_once_for_one_call_of_one_start_of_one_node() {
        let (node, now) = (proving("d7", 5), Instant::now());
        let challenge = node.challenge_at(now);
        let asked = |token_text: &str, challenge: &Challenge, path: &str| {
            Asking::new(&token(token_text), challenge, "POST", path).authorization().to_owned()
        };
        let proven = |authorization: &str| node.proven_at(authorization, "POST", "/drain", now).is_some();
        assert!(!proven(&asked("another", &challenge, "/drain")));
        assert!(!proven(&asked("secret", &challenge, "/else")));
        for other in [
            Challenge { node: "d8".into(), ..challenge.clone() },
            Challenge { instance: "0".into(), ..challenge.clone() },
            Challenge { nonce: hex(&[0; 8 + CHANCE + TAG]), ..challenge.clone() },
            Challenge { nonce: "zz".into(), ..challenge.clone() },
            // Another node's nonce, handed on by somebody in between.
            Challenge { nonce: proving("d7", 5).challenge_at(now).nonce, ..challenge.clone() },
        ] {
            assert!(!proven(&asked("secret", &other, "/drain")), "{other:?}");
        }
        let good = asked("secret", &challenge, "/drain");
        assert!(node.proven_at(&good, "GET", "/drain", now).is_none());
        for bad in [
            "",
            SCHEME,
            "Bearer secret",
            &good.replace(SCHEME, "Bearer"),
            &format!("{good}.0"),
            &good[..good.len() - 1],
        ] {
            assert!(!proven(bad), "{bad}");
        }
        assert!(proven(&good) && !proven(&good) && !proven(&good.to_ascii_uppercase()));
        let late = now + LIFETIME + Duration::from_millis(2);
        let good = asked("secret", &challenge, "/drain");
        assert!(node.proven_at(&good, "POST", "/drain", late).is_none());
    }

    #[test]
    fn what_was_used_is_forgotten_when_it_is_too_old_to_be_used_again() {
        let (node, now) = (proving("d7", 5), Instant::now());
        let call = |at: Instant| {
            let asking = Asking::new(&token("secret"), &node.challenge_at(at), "POST", "/drain");
            node.proven_at(asking.authorization(), "POST", "/drain", at).is_some()
        };
        assert_eq!((0..MOST_USED + 5).filter(|_| call(now)).count(), MOST_USED);
        assert!(call(now + LIFETIME * 2));
        assert_eq!(node.used.lock().unwrap().len(), 1);
    }
}
