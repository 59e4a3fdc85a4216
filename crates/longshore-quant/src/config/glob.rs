//! Patterns as Python's `fnmatch` reads them: `*`, `?`, `[seq]`, `[!seq]`, case-sensitive, on the whole name.

/// One character of a name, or any number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`
    Any,
    /// `?`
    One,
    /// This character.
    Literal(char),
    /// One of these, ends included; or none of them.
    Set { ranges: Vec<(char, char)>, negated: bool },
}

/// A pattern, ready to be compared with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

impl Glob {
    /// Every text is a pattern: a bracket that is never closed stands for itself.
    pub fn new(pattern: &str) -> Self {
        let chars: Vec<char> = pattern.chars().collect();
        let mut tokens = Vec::with_capacity(chars.len());
        let mut i = 0;
        while let Some(&c) = chars.get(i) {
            i += 1;
            match c {
                '*' if tokens.last() == Some(&Token::Any) => {}
                '*' => tokens.push(Token::Any),
                '?' => tokens.push(Token::One),
                '[' => match closing(&chars, i) {
                    Some(end) => {
                        tokens.push(set(&chars[i..end]));
                        i = end + 1;
                    }
                    None => tokens.push(Token::Literal('[')),
                },
                c => tokens.push(Token::Literal(c)),
            }
        }
        Self(tokens)
    }

    /// Whether the whole `name` fits. At most name times pattern steps: only the last star is ever taken back.
    pub fn matches(&self, name: &str) -> bool {
        let tokens = &self.0;
        let mut at = 0;
        let mut rest = name.chars();
        // The token after the last star, and the name from where that star ends so far.
        let mut star: Option<(usize, std::str::Chars)> = None;
        loop {
            if let Some(Token::Any) = tokens.get(at) {
                at += 1;
                star = Some((at, rest.clone()));
                continue;
            }
            match (rest.next(), tokens.get(at)) {
                (None, None) => return true,
                (Some(c), Some(token)) if token.fits(c) => at += 1,
                // The name is used up: a longer star cannot help.
                (None, Some(_)) => return false,
                (Some(_), _) => {
                    let Some((after, from)) = &mut star else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (at, rest) = (*after, from.clone());
                }
            }
        }
    }
}

impl Token {
    fn fits(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Literal(literal) => *literal == c,
            Self::Set { ranges, negated } => ranges.iter().any(|&(from, to)| (from..=to).contains(&c)) != *negated,
        }
    }
}

/// The closing bracket of a set that begins at `from`; one that comes first is a member.
fn closing(chars: &[char], from: usize) -> Option<usize> {
    let mut at = from;
    if chars.get(at) == Some(&'!') {
        at += 1;
    }
    if chars.get(at) == Some(&']') {
        at += 1;
    }
    (at..chars.len()).find(|&i| chars[i] == ']')
}

/// The set between brackets. A hyphen makes a range of its neighbours where both can be told from another range's; a range
/// whose ends are in the wrong order holds nothing.
fn set(inside: &[char]) -> Token {
    let negated = inside.first() == Some(&'!');
    let members = &inside[usize::from(negated)..];
    let mut ranges = Vec::new();
    let mut i = 0;
    while let Some(&from) = members.get(i) {
        match (members.get(i + 1), members.get(i + 2)) {
            (Some('-'), Some(&to)) => {
                if from <= to {
                    ranges.push((from, to));
                }
                i += 3;
            }
            _ => {
                ranges.push((from, from));
                i += 1;
            }
        }
    }
    Token::Set { ranges, negated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_pattern_takes_no_longer_than_its_length_times_the_names() {
        let glob = Glob::new(&"*a".repeat(2000));
        assert!(!glob.matches(&format!("{}b", "a".repeat(4000))));
    }
}
