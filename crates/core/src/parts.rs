//! temporary
pub fn begin(out: &mut Vec<u8>, type_name: &[u8]) {
    out.extend_from_slice(type_name);
}
pub fn push_null(out: &mut Vec<u8>) {
    out.extend_from_slice(b":%NULL");
}
pub fn push(out: &mut Vec<u8>, part: &[u8]) {
    out.push(b':');
    for &b in part {
        match b {
            b'%' => out.extend_from_slice(b"%25"),
            b':' => out.extend_from_slice(b"%3A"),
            _ => out.push(b),
        }
    }
}
pub fn finish(out: &mut Vec<u8>, type_name: &[u8]) {
    if out.len() == type_name.len() {
        out.push(b':');
    }
    out.truncate(255);
}
