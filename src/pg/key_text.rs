//! temporary
use pgrx::pg_sys;
pub struct KeyType {
    oid: pg_sys::Oid,
    out: pg_sys::Oid,
}
impl KeyType {
    pub fn of(oid: pg_sys::Oid) -> Self {
        let mut out = pg_sys::InvalidOid;
        let mut varlena = false;
        unsafe {
            pg_sys::getTypeOutputInfo(oid, &mut out, &mut varlena);
        }
        Self { oid, out }
    }
    pub unsafe fn append(&self, datum: pg_sys::Datum, to: &mut Vec<u8>) {
        unsafe {
            match self.oid {
                pg_sys::INT4OID => {
                    let mut b = itoa(i64::from(datum.value() as i32));
                    to.append(&mut b);
                }
                pg_sys::TEXTOID => {
                    let d = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
                    to.extend_from_slice(super::varlena::text_bytes(pg_sys::Datum::from(d)));
                }
                _ => {
                    let t = pg_sys::OidOutputFunctionCall(self.out, datum);
                    to.extend_from_slice(std::ffi::CStr::from_ptr(t).to_bytes());
                }
            }
        }
    }
    pub unsafe fn append_part(&self, datum: pg_sys::Datum, to: &mut Vec<u8>) {
        let mut b = Vec::new();
        unsafe { self.append(datum, &mut b) };
        counterx_core::parts::push(to, &b);
    }
}
fn itoa(n: i64) -> Vec<u8> {
    n.to_string().into_bytes()
}
