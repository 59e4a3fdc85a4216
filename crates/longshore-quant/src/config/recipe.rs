//! Recipes: YAML files in ModelOpt's form, with `imports` of other files and `$import` where their content goes. A name that
//! no file has may be that of a recipe which is built in.
//!
//! A file that is imported says in a comment, `# modelopt-schema: …`, what it holds; a list of entries is spliced into a list,
//! one entry becomes an element, a mapping is overlaid by the fields beside `$import`. No file is opened here.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use super::parse::{self, fields, text};
use super::yaml::{At, Node, Value, documents};
use super::{BuiltIn, ConfigError, QuantConfig};

type Result<T> = std::result::Result<T, ConfigError>;

/// How files import files. ModelOpt's recipes go four deep.
const MAX_DEPTH: usize = 16;
/// Files of a recipe, each counted as often as it is imported.
const MAX_FILES: usize = 256;
/// Values of a recipe after all imports.
const MAX_VALUES: usize = 200_000;

/// Where recipes and what they import are found.
pub struct Library<'a> {
    /// Reads a file, by a path with `/`.
    pub read: &'a dyn Fn(&str) -> io::Result<String>,
    /// Folders that are searched for recipes, and for imports after the recipe's own: `--recipe-dir`, an installed
    /// `modelopt_recipes`.
    pub dirs: Vec<String>,
}

/// A recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What it does, in its author's words.
    pub description: Option<String>,
    /// The config.
    pub config: QuantConfig,
    /// The file that was read; `None` where the recipe is built in.
    pub file: Option<String>,
}

/// What an imported file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Schema {
    Attributes,
    Entry,
    Entries,
    Config,
}

struct Import {
    name: String,
    schema: Schema,
    content: Node,
}

/// A file before its imports are resolved.
struct File {
    path: String,
    schema: Option<std::result::Result<Schema, String>>,
    imports: Option<Node>,
    content: Node,
}

/// What is known while a recipe is loaded.
struct Loader<'a> {
    shelf: &'a Library<'a>,
    /// The recipe's folder first.
    dirs: Vec<String>,
    files: Cell<usize>,
    values: Cell<usize>,
}

impl Library<'_> {
    /// The recipe `name`: the file at this path, else the first below a folder of the library, else what is built in. `.yml`
    /// or `.yaml` may be left out.
    pub fn load(&self, name: &str) -> Result<Recipe> {
        let dirs = if name.starts_with('/') { &[] } else { self.dirs.as_slice() };
        let found = self.find(&[""], name)?.map_or_else(|| self.find(dirs, name), |file| Ok(Some(file)))?;
        let Some(file) = found else {
            return Ok(Recipe { description: None, config: BuiltIn::named(name)?.config()?, file: None });
        };
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut dirs = vec![folder.to_owned()];
        dirs.extend(package(folder).map(str::to_owned));
        dirs.extend(self.dirs.iter().cloned());
        let loader = Loader { shelf: self, dirs, files: Cell::new(0), values: Cell::new(0) };
        let root = loader.resolve(&file, std::slice::from_ref(&file.path))?;
        let metadata = root.get("metadata").ok_or_else(|| root.at.error("a recipe needs `metadata.recipe_type`"))?;
        let kind = metadata.get("recipe_type").ok_or_else(|| metadata.at.error("`recipe_type` is missing"))?;
        if !kind.is("ptq") {
            let what = text(kind, "recipe_type")?;
            return Err(kind.at.error(format!("recipe_type: `{what}` is not supported, only `ptq`")));
        }
        for (key, _) in fields(&root, "a recipe")? {
            if !["metadata", "quantize"].iter().any(|known| key.is(known)) {
                return Err(key.at.error("a recipe of type ptq has only `metadata` and `quantize`"));
            }
        }
        let quantize = root.get("quantize").ok_or_else(|| root.at.error("`quantize` is missing"))?;
        let description = metadata.get("description").map(|node| text(node, "description")).transpose()?;
        let config = parse::config(quantize, &file.path)?;
        Ok(Recipe { description: description.map(str::to_owned), config, file: Some(file.path) })
    }

    /// The first file called `path` below one of `dirs`.
    fn find(&self, dirs: &[impl AsRef<str>], path: &str) -> Result<Option<File>> {
        let is_yaml = [".yml", ".yaml"].iter().any(|ending| path.ends_with(ending));
        let endings: &[&str] = if is_yaml { &[""] } else { &[".yml", ".yaml"] };
        for dir in dirs {
            let dir = dir.as_ref();
            for ending in endings {
                let full = if dir.is_empty() { format!("{path}{ending}") } else { format!("{dir}/{path}{ending}") };
                match (self.read)(&full) {
                    Ok(text) => return File::new(full, &text).map(Some),
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                    Err(e) => return Err(ConfigError::File(format!("{full}: {e}"))),
                }
            }
        }
        Ok(None)
    }
}

/// The folder `modelopt_recipes` that `folder` lies in: its recipes name files from there.
fn package(folder: &str) -> Option<&str> {
    let parents = std::iter::successors(Some(folder), |path| path.rsplit_once('/').map(|(parent, _)| parent));
    parents.into_iter().find(|path| path.rsplit('/').next() == Some("modelopt_recipes"))
}

impl Loader<'_> {
    /// Counts what an import adds.
    fn count(&self, values: usize, at: &At) -> Result<()> {
        self.values.set(self.values.get().saturating_add(values));
        if self.values.get() > MAX_VALUES { Err(at.error("too many values after imports")) } else { Ok(()) }
    }

    /// The content of `file` with all imports in place. `open` are the files that are being resolved.
    fn resolve(&self, file: &File, open: &[String]) -> Result<Node> {
        let mut imports = Vec::new();
        if let Some(list) = &file.imports {
            for (name, path) in fields(list, "imports")? {
                imports.push(self.import(text(name, "an import's name")?, path, open)?);
            }
        }
        self.splice(&file.content, &imports)
    }

    fn import(&self, name: &str, node: &Node, open: &[String]) -> Result<Import> {
        let path = text(node, &format!("imports.{name}"))?;
        let error = |what: String| node.at.error(format!("imports.{name}: {what}"));
        if path.is_empty() || path.starts_with('/') || path.contains('\\') || path.split('/').any(|part| part == "..") {
            return Err(error(format!("`{path}` is not a path below the recipe's folder or a folder of recipes")));
        }
        self.files.set(self.files.get() + 1);
        if open.len() > MAX_DEPTH || self.files.get() > MAX_FILES {
            return Err(error("too many imports".into()));
        }
        let Some(file) = self.shelf.find(&self.dirs, path)? else {
            let dirs = self.dirs.iter().map(|dir| if dir.is_empty() { "." } else { dir }).collect::<Vec<_>>();
            return Err(error(format!("no file `{path}` below {}", dirs.join(", "))));
        };
        if open.contains(&file.path) {
            return Err(error(format!("`{path}` imports itself")));
        }
        let schema = match &file.schema {
            Some(Ok(schema)) => *schema,
            Some(Err(what)) => return Err(error(format!("`{path}` holds a {what}, which is not supported"))),
            None => return Err(error(format!("`{path}` has no comment `modelopt-schema`"))),
        };
        let mut open = open.to_vec();
        open.push(file.path.clone());
        let content = self.resolve(&file, &open)?;
        if matches!(content.value, Value::List(_)) != (schema == Schema::Entries) {
            return Err(content.at.error("this does not fit the file's modelopt-schema"));
        }
        Ok(Import { name: name.to_owned(), schema, content })
    }

    /// `node` with `$import` replaced.
    fn splice(&self, node: &Node, imports: &[Import]) -> Result<Node> {
        self.count(1, &node.at)?;
        let value = match &node.value {
            Value::List(items) => {
                let mut all = Vec::new();
                for item in items {
                    match (&item.value, item.get("$import")) {
                        (Value::Map(fields), Some(name)) if fields.len() == 1 => {
                            let import = lookup(name, imports)?;
                            self.count(import.content.size(), &item.at)?;
                            match (&import.content.value, import.schema) {
                                (Value::List(items), _) => all.extend(items.iter().cloned()),
                                (_, Schema::Entry | Schema::Attributes) => all.push(import.content.clone()),
                                _ => return Err(item.at.error("$import: a whole config cannot be part of a list")),
                            }
                        }
                        _ => all.push(self.splice(item, imports)?),
                    }
                }
                Value::List(all)
            }
            Value::Map(_) if node.get("$import").is_some() => return self.overlay(node, imports),
            Value::Map(fields) => Value::Map(
                fields
                    .iter()
                    .map(|(key, value)| Ok((key.clone(), self.splice(value, imports)?)))
                    .collect::<Result<_>>()?,
            ),
            scalar => scalar.clone(),
        };
        Ok(Node { at: node.at.clone(), value })
    }

    /// A mapping with `$import`: the fields of the imported ones in order, then its own; a field that comes again keeps its
    /// place.
    fn overlay(&self, node: &Node, imports: &[Import]) -> Result<Node> {
        let mut all: Vec<(Node, Node)> = Vec::new();
        let mut put = |key: &Node, value: Node| {
            let same = |other: &Node| parse::plain(other) == parse::plain(key);
            match all.iter_mut().find(|(known, _)| same(known)) {
                Some((_, slot)) => *slot = value,
                None => all.push((key.clone(), value)),
            }
        };
        for (key, value) in fields(node, "$import")? {
            if !key.is("$import") {
                continue;
            }
            let names = match &value.value {
                Value::List(names) => names.as_slice(),
                _ => std::slice::from_ref(value),
            };
            for name in names {
                let content = &lookup(name, imports)?.content;
                self.count(content.size(), &node.at)?;
                for (key, value) in fields(content, "$import of a list into a mapping")? {
                    put(key, value.clone());
                }
            }
        }
        for (key, value) in fields(node, "$import")? {
            if !key.is("$import") {
                put(key, self.splice(value, imports)?);
            }
        }
        Ok(Node { at: node.at.clone(), value: Value::Map(all) })
    }
}

impl File {
    /// One document, or two: `imports` and the content.
    fn new(path: String, text: &str) -> Result<Self> {
        let name: Rc<str> = path.as_str().into();
        let start = At { file: name.clone(), line: 1 };
        let mut documents = documents(text, &name)?;
        let schema = schema(text, &start)?;
        let empty = Node { at: start.clone(), value: Value::Map(vec![]) };
        let (header, content) = match documents.len() {
            0 => (None, empty),
            1 => (None, documents.remove(0)),
            2 => {
                let content = documents.remove(1);
                (Some(documents.remove(0)), content)
            }
            n => return Err(start.error(format!("{n} documents, where one or two are expected"))),
        };
        let mut imports = None;
        let mut all = Vec::new();
        if let Some(header) = &header {
            let header = fields(header, "the first of two documents")?;
            all.extend(header.iter().cloned());
        }
        let content = match content.value {
            Value::Map(fields) => {
                for (key, value) in fields {
                    all.retain(|(known, _)| parse::plain(known) != parse::plain(&key));
                    all.push((key, value));
                }
                all.retain(|(key, value)| {
                    let is_imports = key.is("imports");
                    if is_imports {
                        imports = Some(value.clone());
                    }
                    !is_imports
                });
                Node { at: content.at, value: Value::Map(all) }
            }
            Value::List(_) => {
                imports = all.into_iter().find(|(key, _)| key.is("imports")).map(|(_, value)| value);
                content
            }
            Value::Null if header.is_none() => Node { at: content.at, value: Value::Map(vec![]) },
            _ => return Err(content.at.error("neither a mapping nor a list")),
        };
        let imports = imports.filter(|node| !matches!(node.value, Value::Null));
        Ok(Self { path, schema, imports, content })
    }
}

/// What the comment before the first value says that the file holds; `Err` with a name that is not known here.
fn schema(text: &str, start: &At) -> Result<Option<std::result::Result<Schema, String>>> {
    let mut found = None;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let Some(comment) = line.strip_prefix('#') else { break };
        let Some(name) = comment.trim().strip_prefix("modelopt-schema:").map(str::trim) else { continue };
        if found.is_some() {
            return Err(At { line: i + 1, ..start.clone() }.error("a second modelopt-schema"));
        }
        found = Some(match name.rsplit('.').next() {
            Some("QuantizerAttributeConfig") => Ok(Schema::Attributes),
            Some("QuantizerCfgEntry") => Ok(Schema::Entry),
            Some("QuantizerCfgListConfig") => Ok(Schema::Entries),
            Some("QuantizeConfig") => Ok(Schema::Config),
            _ => Err(name.to_owned()),
        });
    }
    Ok(found)
}

fn lookup<'a>(name: &Node, imports: &'a [Import]) -> Result<&'a Import> {
    let wanted = text(name, "$import")?;
    imports.iter().find(|import| import.name == wanted).ok_or_else(|| {
        let known: Vec<_> = imports.iter().map(|import| import.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        name.at.error(format!("$import: `{wanted}` is not among the imports: {known}"))
    })
}
