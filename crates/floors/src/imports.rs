//! What a file names of its own crate.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::iter::Peekable;
use std::str::FromStr;
use std::vec::IntoIter;

/// A path that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The line that it begins on, from 1.
    pub line: usize,
    /// Its segments from the root of the crate on.
    pub path: Vec<String>,
}

/// The module that a file is, from the root of the crate on: `a/b.rs` and `a/b/mod.rs` are both `a::b`.
pub(crate) fn module_of(file: &str) -> Vec<String> {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// All paths that a file names, in their order.
///
/// # Errors
/// What is not Rust.
pub fn imports(file: &str, text: &str) -> Result<Vec<Import>, String> {
    let tokens = TokenStream::from_str(text).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    visit(tokens, &module_of(file), &mut found);
    Ok(found)
}

type Tokens = Peekable<IntoIter<TokenTree>>;

fn tokens_of(stream: TokenStream) -> Tokens {
    stream
        .into_iter()
        .collect::<Vec<_>>()
        .into_iter()
        .peekable()
}

/// `module` is the one that the tokens are in.
fn visit(stream: TokenStream, module: &[String], found: &mut Vec<Import>) {
    let mut tokens = tokens_of(stream);
    let mut after_colons = false;
    while let Some(token) = tokens.next() {
        let begins_path = !std::mem::take(&mut after_colons);
        match token {
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                let name = ident.to_string();
                if name == "mod" {
                    visit_module(&mut tokens, module, found);
                    continue;
                }
                let Some(base) = base_of(&name, module).filter(|_| begins_path) else {
                    continue;
                };
                if take_colons(&mut tokens) {
                    path(&mut tokens, base, line, found);
                }
            }
            TokenTree::Group(group) => visit(group.stream(), module, found),
            TokenTree::Punct(punct) if punct.as_char() == ':' => {
                // `$crate::x` and `a::super` are no paths of ours; a single colon is no path at all.
                after_colons = is_colon(&mut tokens) && tokens.next().is_some();
            }
            TokenTree::Punct(punct) if punct.as_char() == '$' => after_colons = true,
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// After `mod`: a name, and then its content, if that is here.
fn visit_module(tokens: &mut Tokens, module: &[String], found: &mut Vec<Import>) {
    let Some(TokenTree::Ident(name)) = tokens.next() else {
        return;
    };
    if let Some(TokenTree::Group(group)) = tokens.peek()
        && group.delimiter() == Delimiter::Brace
    {
        let content = group.stream();
        tokens.next();
        let mut inner = module.to_vec();
        inner.push(name.to_string());
        visit(content, &inner, found);
    }
}

fn base_of(name: &str, module: &[String]) -> Option<Vec<String>> {
    match name {
        "crate" => Some(Vec::new()),
        "super" => Some(module[..module.len().saturating_sub(1)].to_vec()),
        _ => None,
    }
}

fn is_colon(tokens: &mut Tokens) -> bool {
    matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

fn take_colons(tokens: &mut Tokens) -> bool {
    if !is_colon(tokens) {
        return false;
    }
    tokens.next();
    is_colon(tokens) && tokens.next().is_some()
}

/// What follows `base::`: a name, or several in braces.
fn path(tokens: &mut Tokens, mut base: Vec<String>, line: usize, found: &mut Vec<Import>) {
    loop {
        match tokens.peek() {
            Some(TokenTree::Ident(ident)) => {
                let name = ident.to_string();
                tokens.next();
                match &*name {
                    "super" => {
                        base.pop();
                    }
                    "self" => {}
                    _ => base.push(name),
                }
                // `a::<T>` ends the path as well.
                if !take_colons(tokens) {
                    break;
                }
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let mut inner = tokens_of(group.stream());
                tokens.next();
                while let Some(token) = inner.peek() {
                    match token {
                        TokenTree::Ident(ident) => {
                            let line = ident.span().start().line;
                            path(&mut inner, base.clone(), line, found);
                        }
                        _ => {
                            inner.next();
                        }
                    }
                    // `as another`
                    for token in inner.by_ref() {
                        if matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',') {
                            break;
                        }
                    }
                }
                return;
            }
            _ => break,
        }
    }
    found.push(Import { line, path: base });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, text: &str) -> Vec<(usize, String)> {
        let found = imports(file, text).expect("it is Rust");
        let texts = found.into_iter();
        texts
            .map(|import| (import.line, import.path.join("::")))
            .collect()
    }

    fn one(line: usize, path: &str) -> (usize, String) {
        (line, path.to_owned())
    }

    #[test]
    fn uses_and_paths_are_found_with_their_lines() {
        let text = "use crate::a::{self, b::{C, d as e}, F};\n\
                    fn f() -> crate::g::H<super::I> {\n\
                    crate::j::k::<T>(\n\
                    super::l::m)\n}";
        let expected = [
            one(1, "a"),
            one(1, "a::b::C"),
            one(1, "a::b::d"),
            one(1, "a::F"),
            one(2, "g::H"),
            one(2, "x::I"),
            one(3, "j::k"),
            one(4, "x::l::m"),
        ];
        assert_eq!(of("x/y.rs", text), expected);
    }

    #[test]
    fn braces_over_several_lines_have_a_line_each() {
        let text = "use crate::{\n    a,\n    b::{\n        C,\n    },\n};";
        assert_eq!(of("x.rs", text), [one(2, "a"), one(4, "b::C")]);
    }

    #[test]
    fn comments_strings_and_others_crates_say_nothing() {
        let text = "//! [`crate::a`]\n/// crate::b\n/* crate::c */ const D: &str = \"crate::d\";\n\
                    use std::crates::e; use other::super_::f;";
        assert_eq!(of("x.rs", text), []);
    }

    #[test]
    fn what_macros_are_given_counts_and_their_own_crate_does_not() {
        let text = "thread_local! { static A: crate::a::B = crate::a::c(); }\n\
                    macro_rules! m { () => { $crate::d::e() } }";
        assert_eq!(of("x.rs", text), [one(1, "a::B"), one(1, "a::c")]);
    }

    #[test]
    fn super_in_a_module_of_the_file_is_the_file() {
        let text = "mod tests { use super::*; use super::a; use super::super::b; }\nmod other;";
        let expected = [one(1, "x::y"), one(1, "x::y::a"), one(1, "x::b")];
        assert_eq!(of("x/y.rs", text), expected);
    }

    #[test]
    fn super_of_a_folders_own_file_is_what_the_folder_is_in() {
        assert_eq!(of("x/mod.rs", "use super::a;"), [one(1, "a")]);
    }

    #[test]
    fn what_is_no_rust_is_said() {
        assert!(imports("x.rs", "fn f( {").is_err());
    }
}
