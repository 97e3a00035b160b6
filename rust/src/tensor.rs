//! Tensors: bytes with a type and a shape, checked once and never reinterpreted.

use std::fmt;
use std::ops::Index;

use bytes::Bytes;

use crate::error::Error;
use crate::image;
use crate::minifloat;

#[cfg(target_endian = "big")]
compile_error!(
    "inferential: the wire is little-endian and this crate views it in place; big-endian targets are not supported"
);

/// More dimensions than this make a tensor invalid.
pub const MAX_DIMENSIONS: usize = 32;
const MAX_IMAGE_SIDE: usize = 16384;

macro_rules! dtypes {
    ($($variant:ident $number:literal $size:literal $name:literal $doc:literal;)*) => {
        /// Type of a tensor's elements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DType {
            $(#[doc = $doc] $variant,)*
        }

        impl DType {
            /// Every type there is.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// Number on the wire.
            pub const fn number(self) -> i32 {
                match self { $(DType::$variant => $number,)* }
            }

            /// The type with this number on the wire.
            pub const fn from_number(number: i32) -> Option<DType> {
                match number { $($number => Some(DType::$variant),)* _ => None }
            }

            /// Bytes per element.
            pub const fn size(self) -> usize {
                match self { $(DType::$variant => $size,)* }
            }

            /// Name, as numpy and ml_dtypes spell it.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }
        }
    };
}

dtypes! {
    Float16 1 2 "float16" "IEEE half precision.";
    Float32 2 4 "float32" "IEEE single precision.";
    Float64 3 8 "float64" "IEEE double precision.";
    BFloat16 4 2 "bfloat16" "The upper half of a single.";
    UInt8 5 1 "uint8" "Unsigned, 8 bits.";
    Int32 6 4 "int32" "Signed, 32 bits.";
    Int64 7 8 "int64" "Signed, 64 bits.";
    Bool 8 1 "bool" "One byte: 0 is false, anything else true.";
    UInt16 101 2 "uint16" "Unsigned, 16 bits.";
    Int8 102 1 "int8" "Signed, 8 bits.";
    Int16 103 2 "int16" "Signed, 16 bits.";
    UInt32 104 4 "uint32" "Unsigned, 32 bits.";
    UInt64 105 8 "uint64" "Unsigned, 64 bits.";
    Float8E4M3Fn 106 1 "float8_e4m3fn" "8 bits: 4 of exponent, 3 of mantissa, no infinity.";
    Float8E5M2 107 1 "float8_e5m2" "8 bits: 5 of exponent, 2 of mantissa.";
}

impl DType {
    /// The type of that [`name`](DType::name).
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// Whether elements are floating point numbers.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::Float16
                | DType::Float32
                | DType::Float64
                | DType::BFloat16
                | DType::Float8E4M3Fn
                | DType::Float8E5M2
        )
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a tensor's bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Encoding {
    /// The elements themselves, little-endian, C order.
    #[default]
    Raw,
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
}

impl Encoding {
    /// Number on the wire.
    pub const fn number(self) -> i32 {
        match self {
            Encoding::Raw => 1,
            Encoding::Jpeg => 2,
            Encoding::Png => 3,
        }
    }

    /// The encoding with this number on the wire; 0 reads as raw.
    pub const fn from_number(number: i32) -> Option<Encoding> {
        match number {
            0 | 1 => Some(Encoding::Raw),
            2 => Some(Encoding::Jpeg),
            3 => Some(Encoding::Png),
            _ => None,
        }
    }
}

mod sealed {
    pub trait Sealed: bytemuck::NoUninit {
        /// The bytes as elements where they lie, when they are aligned and valid.
        fn view(bytes: &[u8]) -> Option<&[Self]>;
        /// The bytes as elements of their own.
        fn collect(bytes: &[u8]) -> Vec<Self>;
    }
}

/// A Rust type that tensors hold: `f32`, `f64`, `u8` to `u64`, `i8` to `i64`, `bool`, the bit types
/// [`F16Bits`], [`BF16Bits`], [`F8E4M3FnBits`] and [`F8E5M2Bits`], and with the feature `half` also `half::f16` and `half::bf16`.
pub trait Element: sealed::Sealed + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// The type on the wire.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident;)*) => {$(
        impl sealed::Sealed for $type {
            fn view(bytes: &[u8]) -> Option<&[Self]> {
                if bytes.is_empty() { Some(&[]) } else { bytemuck::try_cast_slice(bytes).ok() }
            }
            fn collect(bytes: &[u8]) -> Vec<Self> {
                let mut elements = vec![<Self as bytemuck::Zeroable>::zeroed(); bytes.len() / size_of::<Self>()];
                bytemuck::cast_slice_mut::<Self, u8>(&mut elements).copy_from_slice(bytes);
                elements
            }
        }
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements! {
    f32 => Float32;
    f64 => Float64;
    u8 => UInt8;
    u16 => UInt16;
    u32 => UInt32;
    u64 => UInt64;
    i8 => Int8;
    i16 => Int16;
    i32 => Int32;
    i64 => Int64;
    F16Bits => Float16;
    BF16Bits => BFloat16;
    F8E4M3FnBits => Float8E4M3Fn;
    F8E5M2Bits => Float8E5M2;
}

#[cfg(feature = "half")]
elements! {
    half::f16 => Float16;
    half::bf16 => BFloat16;
}

impl sealed::Sealed for bool {
    fn view(bytes: &[u8]) -> Option<&[bool]> {
        bytemuck::checked::try_cast_slice(bytes).ok()
    }
    fn collect(bytes: &[u8]) -> Vec<bool> {
        bytes.iter().map(|&byte| byte != 0).collect()
    }
}

impl Element for bool {
    const DTYPE: DType = DType::Bool;
}

macro_rules! bit_types {
    ($($name:ident($bits:ty) $format:ident $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        pub struct $name(
            /// The bits.
            pub $bits
        );

        impl $name {
            /// The value; exact.
            pub fn to_f32(self) -> f32 {
                minifloat::$format.decode(u16::from(self.0))
            }

            /// The nearest value, ties to even.
            pub fn from_f32(value: f32) -> Self {
                Self::from_f64(f64::from(value))
            }

            fn from_f64(value: f64) -> Self {
                Self(minifloat::$format.encode(value) as $bits)
            }
        }
    )*};
}

bit_types! {
    F16Bits(u16) F16 "A half precision float, as its bits.";
    BF16Bits(u16) BF16 "A bfloat16, as its bits.";
    F8E4M3FnBits(u8) F8_E4M3FN "An 8-bit float of 4 exponent and 3 mantissa bits, without infinity, as its bits.";
    F8E5M2Bits(u8) F8_E5M2 "An 8-bit float of 5 exponent and 2 mantissa bits, as its bits.";
}

/// Checks that bytes, type, shape and encoding fit together. The error names the wire's field.
pub(crate) fn check(dtype: DType, shape: &[usize], encoding: Encoding, data: &[u8]) -> Result<(), String> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(format!("shape has {} dimensions; at most {MAX_DIMENSIONS} are allowed", shape.len()));
    }
    // Even a shape without elements must be one that every language can hold.
    let dimensions = shape.iter().filter(|&&dimension| dimension != 0);
    let held = dimensions.clone().try_fold(dtype.size() as i64, |product, &dimension| {
        i64::try_from(dimension).ok().and_then(|dimension| product.checked_mul(dimension))
    });
    let Some(held) = held else {
        return Err(format!("shape {shape:?} of {dtype} is 2^63 bytes or more"));
    };
    if encoding == Encoding::Raw {
        let expected = if dimensions.count() < shape.len() { 0 } else { held };
        if usize::try_from(expected) != Ok(data.len()) {
            let length = data.len();
            return Err(format!("shape {shape:?} of {dtype} needs {expected} bytes; byte_length is {length}"));
        }
        return Ok(());
    }
    if dtype != DType::UInt8 {
        return Err(format!("dtype is {dtype}; an encoded image must be uint8"));
    }
    let &[height, width, channels] = shape else {
        return Err(format!("shape {shape:?} of an encoded image must be (height, width, channels)"));
    };
    if !matches!(channels, 1 | 3 | 4) {
        return Err(format!("shape {shape:?} of an encoded image must have 1, 3 or 4 channels"));
    }
    if !(1..=MAX_IMAGE_SIDE).contains(&height) || !(1..=MAX_IMAGE_SIDE).contains(&width) {
        return Err(format!("shape {shape:?} of an encoded image must have sides of 1 to {MAX_IMAGE_SIDE}"));
    }
    if data.is_empty() {
        return Err("byte_length of an encoded image must be above 0".to_owned());
    }
    let real = image::shape(encoding, data)?;
    if real != shape {
        return Err(format!("shape is {shape:?}, but the image itself is {real:?} (height, width, channels)"));
    }
    Ok(())
}

/// Bytes of 8-byte words, so that every element type is aligned in them.
struct AlignedBytes {
    words: Vec<u64>,
    length: usize,
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).get(..self.length).unwrap_or_default()
    }
}

/// The same bytes at an address that is a multiple of `alignment` (a power of two up to 8): themselves, or a copy.
fn align(data: Bytes, alignment: usize) -> Bytes {
    if (data.as_ptr() as usize).is_multiple_of(alignment) {
        return data;
    }
    let length = data.len();
    let mut words = vec![0u64; length.div_ceil(8)];
    if let Some(target) = bytemuck::cast_slice_mut::<u64, u8>(&mut words).get_mut(..length) {
        target.copy_from_slice(&data);
    }
    Bytes::from_owner(AlignedBytes { words, length })
}

struct Elements<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// An n-dimensional array: bytes, their type, shape and encoding, which always fit together.
///
/// Cloning is cheap: the bytes are shared. `Send` and `Sync`.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    encoding: Encoding,
    timestamp_ns: u64,
    data: Bytes,
}

impl Tensor {
    /// A tensor that takes over the elements without a copy. An empty `shape` is a scalar.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] where the shape does not have as many elements.
    ///
    /// ```
    /// let tensor = inferential::Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
    /// assert_eq!(tensor.as_slice::<f32>()?[5], 6.0);
    /// assert!(tensor.as_slice::<i32>().is_err()); // the same size, another type
    /// # Ok::<(), inferential::Error>(())
    /// ```
    pub fn from_vec<T: Element>(elements: Vec<T>, shape: &[usize]) -> Result<Tensor, Error> {
        Tensor::from_bytes(T::DTYPE, shape, Bytes::from_owner(Elements(elements)))
    }

    /// A tensor with a copy of the elements.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] where the shape does not have as many elements.
    pub fn from_slice<T: Element>(elements: &[T], shape: &[usize]) -> Result<Tensor, Error> {
        Tensor::from_vec(elements.to_vec(), shape)
    }

    /// A tensor of a type known only at run time, from little-endian bytes in C order. They are copied only where
    /// they are misaligned for the type.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] where type, shape and number of bytes do not fit together.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: impl Into<Bytes>) -> Result<Tensor, Error> {
        Tensor::new(dtype, shape.to_vec(), Encoding::Raw, bytes.into())
            .map_err(|reason| Error::InvalidTensor { reason })
    }

    /// A picture as the bytes of a JPEG or PNG file; `shape` is (height, width, channels) of the decoded picture.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] where the file's header is not of that encoding or names another size, and where the
    /// shape is none of a picture: 1, 3 or 4 channels, sides of 1 to 16384.
    pub fn from_image(encoding: Encoding, bytes: impl Into<Bytes>, shape: [usize; 3]) -> Result<Tensor, Error> {
        if encoding == Encoding::Raw {
            return Err(Error::InvalidTensor { reason: "an encoded image must be Jpeg or Png, not Raw".to_owned() });
        }
        Tensor::new(DType::UInt8, shape.to_vec(), encoding, bytes.into())
            .map_err(|reason| Error::InvalidTensor { reason })
    }

    pub(crate) fn new(dtype: DType, shape: Vec<usize>, encoding: Encoding, data: Bytes) -> Result<Tensor, String> {
        check(dtype, &shape, encoding, &data)?;
        Ok(Tensor { dtype, shape, encoding, timestamp_ns: 0, data: align(data, dtype.size()) })
    }

    /// The same tensor with the wall clock time, in ns since 1970, at which the sensor measured it; 0 is not known.
    #[must_use]
    pub fn with_timestamp_ns(mut self, timestamp_ns: u64) -> Tensor {
        self.timestamp_ns = timestamp_ns;
        self
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Length of each dimension, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the bytes are written.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Wall clock time, in ns since 1970, at which the sensor measured it; 0 is not known.
    pub fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// The bytes: little-endian elements in C order, or the file of an encoded image.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Number of elements (of the decoded picture, for an encoded image).
    pub fn len(&self) -> usize {
        if self.shape.contains(&0) {
            0
        } else {
            self.shape.iter().product()
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements where they lie.
    ///
    /// # Errors
    /// [`Error::WrongDType`] where the tensor holds another type; [`Error::InvalidTensor`] for an encoded image, and for
    /// a bool tensor with bytes other than 0 and 1, which [`to_vec`](Tensor::to_vec) reads.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], Error> {
        self.check_type::<T>()?;
        T::view(&self.data).ok_or_else(|| Error::InvalidTensor {
            reason: "holds bools that are neither 0 nor 1; read them with to_vec".to_owned(),
        })
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// [`Error::WrongDType`] where the tensor holds another type; [`Error::InvalidTensor`] for an encoded image.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, Error> {
        self.check_type::<T>()?;
        Ok(T::collect(&self.data))
    }

    /// Short for [`as_slice::<f32>`](Tensor::as_slice).
    ///
    /// # Errors
    /// As [`as_slice`](Tensor::as_slice).
    pub fn as_f32(&self) -> Result<&[f32], Error> {
        self.as_slice()
    }

    fn check_type<T: Element>(&self) -> Result<(), Error> {
        if self.dtype != T::DTYPE {
            return Err(Error::WrongDType { requested: T::DTYPE, actual: self.dtype });
        }
        if self.encoding != Encoding::Raw {
            return Err(Error::InvalidTensor {
                reason: format!("holds a {:?} file, not its elements; decode bytes()", self.encoding),
            });
        }
        Ok(())
    }

    /// Zeros of the same type and shape.
    pub(crate) fn zeros_like(&self) -> Tensor {
        let length = self.len().saturating_mul(self.dtype.size());
        Tensor {
            dtype: self.dtype,
            shape: self.shape.clone(),
            encoding: Encoding::Raw,
            timestamp_ns: 0,
            data: align(Bytes::from(vec![0u8; length]), self.dtype.size()),
        }
    }

    /// Floating point elements times `factor`; anything else as it is.
    pub(crate) fn scaled(&self, factor: f64) -> Tensor {
        fn map<T: Element>(tensor: &Tensor, scale: impl Fn(T) -> T) -> Tensor {
            let elements: Vec<T> = T::collect(&tensor.data).into_iter().map(scale).collect();
            Tensor { data: Bytes::from_owner(Elements(elements)), ..tensor.clone() }
        }
        // Rounded once, at the end.
        let times = |value: f32| f64::from(value) * factor;
        match self.dtype {
            DType::Float32 => map(self, |value: f32| times(value) as f32),
            DType::Float64 => map(self, |value: f64| value * factor),
            DType::Float16 => map(self, |value: F16Bits| F16Bits::from_f64(times(value.to_f32()))),
            DType::BFloat16 => map(self, |value: BF16Bits| BF16Bits::from_f64(times(value.to_f32()))),
            DType::Float8E4M3Fn => map(self, |value: F8E4M3FnBits| F8E4M3FnBits::from_f64(times(value.to_f32()))),
            DType::Float8E5M2 => map(self, |value: F8E5M2Bits| F8E5M2Bits::from_f64(times(value.to_f32()))),
            _ => self.clone(),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tensor({} {:?}, {:?}, {} bytes)", self.dtype, self.shape, self.encoding, self.data.len())
    }
}

#[cfg(feature = "ndarray")]
impl Tensor {
    /// A tensor with a copy of the array, whatever its memory order.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for more than 32 dimensions.
    pub fn from_array<T: Element, D: ndarray::Dimension>(
        array: &ndarray::ArrayView<'_, T, D>,
    ) -> Result<Tensor, Error> {
        Tensor::from_vec(array.iter().copied().collect(), array.shape())
    }

    /// The elements as an array view.
    ///
    /// # Errors
    /// As [`as_slice`](Tensor::as_slice).
    ///
    /// ```
    /// let array = ndarray::arr2(&[[1i16, 2], [3, 4]]);
    /// let tensor = inferential::Tensor::from_array(&array.view())?;
    /// assert_eq!(tensor.as_array::<i16>()?, array.into_dyn());
    /// # Ok::<(), inferential::Error>(())
    /// ```
    pub fn as_array<T: Element>(&self) -> Result<ndarray::ArrayViewD<'_, T>, Error> {
        ndarray::ArrayViewD::from_shape(self.shape.as_slice(), self.as_slice()?)
            .map_err(|error| Error::InvalidTensor { reason: error.to_string() })
    }
}

/// Tensors by name, in the order of the message.
///
/// `tensors["actions"]` panics where there is no such tensor, as a map's index does; [`get`](Tensors::get) and
/// [`tensor`](Tensors::tensor) are the checked forms.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tensors(Vec<(String, Tensor)>);

impl Tensors {
    /// None yet.
    pub fn new() -> Tensors {
        Tensors::default()
    }

    /// Adds a tensor, or puts it in the place of the one of that name.
    pub fn insert(&mut self, key: impl Into<String>, tensor: Tensor) {
        let key = key.into();
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some((_, place)) => *place = tensor,
            None => self.0.push((key, tensor)),
        }
    }

    /// The tensor of that name.
    pub fn get(&self, key: &str) -> Option<&Tensor> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, tensor)| tensor)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], with the names there are.
    pub fn tensor(&self, key: &str) -> Result<&Tensor, Error> {
        self.get(key).ok_or_else(|| Error::MissingTensor {
            key: key.to_owned(),
            available: self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Names and tensors.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(key, tensor)| (key.as_str(), tensor))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tensors whose names are known to differ.
    pub(crate) fn from_unique(tensors: Vec<(String, Tensor)>) -> Tensors {
        Tensors(tensors)
    }

    /// The same names with other tensors.
    pub(crate) fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Tensors {
        Tensors(self.0.iter().map(|(key, tensor)| (key.clone(), change(tensor))).collect())
    }
}

impl Index<&str> for Tensors {
    type Output = Tensor;

    #[allow(clippy::panic)] // as a map's index does; `tensor` is the checked form
    fn index(&self, key: &str) -> &Tensor {
        match self.tensor(key) {
            Ok(tensor) => tensor,
            Err(error) => panic!("{error}"),
        }
    }
}

impl FromIterator<(String, Tensor)> for Tensors {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Tensors {
        let mut all = Tensors::new();
        tensors.into_iter().for_each(|(key, tensor)| all.insert(key, tensor));
        all
    }
}

impl fmt::Debug for Tensors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}
