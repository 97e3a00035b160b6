#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "inferential/error.hpp"
#include "inferential/export.hpp"
#include "inferential/float_types.hpp"

namespace inferential {

namespace detail {
struct Message;
class Watchdog;
INFERENTIAL_API void retain(const Message* message) noexcept;
INFERENTIAL_API void release(const Message* message) noexcept;

/// Shared ownership of an immutable message; counts may change on any thread.
class MessageRef {
 public:
  MessageRef() noexcept = default;
  explicit MessageRef(Message* adopted) noexcept : message_(adopted) {}
  MessageRef(const MessageRef& other) noexcept : message_(other.message_) {
    if (message_ != nullptr) retain(message_);
  }
  MessageRef(MessageRef&& other) noexcept : message_(other.message_) { other.message_ = nullptr; }
  MessageRef& operator=(MessageRef other) noexcept {
    Message* mine = message_;
    message_ = other.message_;
    other.message_ = mine;
    return *this;
  }
  ~MessageRef() {
    if (message_ != nullptr) release(message_);
  }
  Message* get() const noexcept { return message_; }
  Message* operator->() const noexcept { return message_; }
  Message& operator*() const noexcept { return *message_; }
  explicit operator bool() const noexcept { return message_ != nullptr; }

 private:
  Message* message_ = nullptr;
};
}  // namespace detail

/// Element types of the wire, with the wire's numbers.
enum class DType : std::int32_t {
  Unspecified = 0,
  Float16 = 1,
  Float32 = 2,
  Float64 = 3,
  BFloat16 = 4,
  UInt8 = 5,
  Int32 = 6,
  Int64 = 7,
  Bool = 8,
  UInt16 = 101,
  Int8 = 102,
  Int16 = 103,
  UInt32 = 104,
  UInt64 = 105,
  Float8E4M3FN = 106,
  Float8E5M2 = 107,
};

enum class Encoding : std::int32_t { Raw = 1, Jpeg = 2, Png = 3 };

INFERENTIAL_API std::string_view to_string(DType dtype) noexcept;
INFERENTIAL_API std::string_view to_string(Encoding encoding) noexcept;

/// Bytes of one element; 0 for a dtype that is not in the table.
INFERENTIAL_API std::size_t itemsize(DType dtype) noexcept;

/// The wire's dtype of a C++ type; a compile error for a type that has none.
template <class T>
constexpr DType dtype_of() noexcept {
  static_assert(sizeof(bool) == 1, "the wire's BOOL is one byte");
  if constexpr (std::is_same_v<T, float>) {
    return DType::Float32;
  } else if constexpr (std::is_same_v<T, double>) {
    return DType::Float64;
  } else if constexpr (std::is_same_v<T, float16>) {
    return DType::Float16;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return DType::BFloat16;
  } else if constexpr (std::is_same_v<T, float8_e4m3fn>) {
    return DType::Float8E4M3FN;
  } else if constexpr (std::is_same_v<T, float8_e5m2>) {
    return DType::Float8E5M2;
  } else if constexpr (std::is_same_v<T, bool>) {
    return DType::Bool;
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    return DType::UInt8;
  } else if constexpr (std::is_same_v<T, std::uint16_t>) {
    return DType::UInt16;
  } else if constexpr (std::is_same_v<T, std::uint32_t>) {
    return DType::UInt32;
  } else if constexpr (std::is_same_v<T, std::uint64_t>) {
    return DType::UInt64;
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    return DType::Int8;
  } else if constexpr (std::is_same_v<T, std::int16_t>) {
    return DType::Int16;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return DType::Int32;
  } else {
    static_assert(std::is_same_v<T, std::int64_t>, "the wire has no dtype for this type");
    return DType::Int64;
  }
}

/// Pointer and count, for `auto [ptr, count] = ...` and range-for. Owns nothing.
template <class T>
struct Span {
  T* ptr = nullptr;
  std::size_t count = 0;

  constexpr T* data() const noexcept { return ptr; }
  constexpr std::size_t size() const noexcept { return count; }
  constexpr bool empty() const noexcept { return count == 0; }
  constexpr T* begin() const noexcept { return ptr; }
  constexpr T* end() const noexcept { return ptr + count; }
  constexpr T& operator[](std::size_t index) const noexcept { return ptr[index]; }
};

/// A shape for the length of one call: `{8, 7}`, a vector or an array; `{}` is a scalar.
class Shape {
 public:
  constexpr Shape() noexcept = default;
  constexpr Shape(std::initializer_list<std::int64_t> dimensions) noexcept
      : dimensions_{dimensions.begin(), dimensions.size()} {}
  Shape(const std::vector<std::int64_t>& dimensions) noexcept : dimensions_{dimensions.data(), dimensions.size()} {}
  template <std::size_t N>
  constexpr Shape(const std::array<std::int64_t, N>& dimensions) noexcept : dimensions_{dimensions.data(), N} {}
  constexpr Shape(Span<const std::int64_t> dimensions) noexcept : dimensions_(dimensions) {}

  constexpr Span<const std::int64_t> dimensions() const noexcept { return dimensions_; }

 private:
  Span<const std::int64_t> dimensions_;
};

/// A view of one named tensor: little-endian, C-contiguous, immutable.
///
/// Valid as long as the Reply, Tensors or Action that it came from (or a copy of that) lives.
/// A Tensor made by the default constructor stands for a missing one: it is false, of no dtype and empty.
class Tensor {
 public:
  Tensor() noexcept = default;
  /// `elements` points at the same values as `bytes`, aligned for the dtype.
  Tensor(std::string_view key, DType dtype, Encoding encoding, Span<const std::int64_t> shape,
         Span<const std::byte> bytes, const void* elements, std::size_t element_count,
         std::uint64_t timestamp_ns) noexcept
      : key_(key),
        dtype_(dtype),
        encoding_(encoding),
        shape_(shape),
        bytes_(bytes),
        elements_(elements),
        element_count_(element_count),
        timestamp_ns_(timestamp_ns) {}

  explicit operator bool() const noexcept { return dtype_ != DType::Unspecified; }

  std::string_view key() const noexcept { return key_; }
  DType dtype() const noexcept { return dtype_; }
  Encoding encoding() const noexcept { return encoding_; }
  Span<const std::int64_t> shape() const noexcept { return shape_; }
  /// The bytes as they travelled, at any alignment; those of the image file where encoding() is not Raw.
  Span<const std::byte> bytes() const noexcept { return bytes_; }
  std::size_t element_count() const noexcept { return element_count_; }
  /// Wall clock in ns when it was measured; 0 = not known.
  std::uint64_t timestamp_ns() const noexcept { return timestamp_ns_; }

  /// The elements, or {nullptr, 0} where the dtype is not T's, the tensor is missing, or it is an encoded image.
  template <class T>
  Span<const T> as() const noexcept {
    if (dtype_ != dtype_of<T>() || encoding_ != Encoding::Raw) return {};
    return {static_cast<const T*>(elements_), element_count_};
  }

  /// As as<T>(), telling why not: MissingTensor or WrongType.
  template <class T>
  [[nodiscard]] Result<Span<const T>> get() const {
    if (dtype_ != dtype_of<T>() || encoding_ != Encoding::Raw) return type_error(dtype_of<T>());
    return Span<const T>{static_cast<const T*>(elements_), element_count_};
  }

 private:
  INFERENTIAL_API Error type_error(DType wanted) const;

  std::string_view key_;
  DType dtype_ = DType::Unspecified;
  Encoding encoding_ = Encoding::Raw;
  Span<const std::int64_t> shape_;
  Span<const std::byte> bytes_;
  const void* elements_ = nullptr;
  std::size_t element_count_ = 0;
  std::uint64_t timestamp_ns_ = 0;
};

/// An immutable set of named tensors. Copies share; reading from several threads at once is safe.
class Tensors {
 public:
  Tensors() noexcept = default;
  explicit Tensors(detail::MessageRef message) noexcept : message_(std::move(message)) {}

  /// The tensor of that key, or a missing one.
  INFERENTIAL_API Tensor operator[](std::string_view key) const noexcept;
  /// The tensor of that key, or MissingTensor with the keys there are.
  [[nodiscard]] INFERENTIAL_API Result<Tensor> find(std::string_view key) const;
  /// The elements of the tensor of that key; MissingTensor or WrongType.
  template <class T>
  [[nodiscard]] Result<Span<const T>> get(std::string_view key) const {
    auto tensor = find(key);
    if (!tensor) return tensor.error();
    return tensor->template get<T>();
  }

  /// All of them, in the sender's order.
  INFERENTIAL_API Span<const Tensor> all() const noexcept;
  std::size_t size() const noexcept { return all().size(); }
  bool empty() const noexcept { return all().empty(); }
  const Tensor* begin() const noexcept { return all().begin(); }
  const Tensor* end() const noexcept { return all().end(); }

 private:
  friend class detail::Watchdog;
  detail::MessageRef message_;
};

/// Makes Tensors: what a fallback callback returns, or a template of zeros. Copies the data it is given.
class TensorsBuilder {
 public:
  INFERENTIAL_API TensorsBuilder();
  INFERENTIAL_API ~TensorsBuilder();
  INFERENTIAL_API TensorsBuilder(TensorsBuilder&&) noexcept;
  INFERENTIAL_API TensorsBuilder& operator=(TensorsBuilder&&) noexcept;

  /// `count` elements in C order; InvalidArgument at build() where product(shape) is not count.
  template <class T>
  TensorsBuilder& add(std::string_view key, const T* data, std::size_t count, Shape shape) {
    return add_bytes(key, dtype_of<T>(), data, count * sizeof(T), shape);
  }
  /// Zeros of that dtype and shape.
  INFERENTIAL_API TensorsBuilder& add_zeros(std::string_view key, DType dtype, Shape shape);
  INFERENTIAL_API TensorsBuilder& add_bytes(std::string_view key, DType dtype, const void* data,
                                            std::size_t byte_length, Shape shape);
  /// The first error of the calls before, or all that was added; the builder is empty afterwards.
  [[nodiscard]] INFERENTIAL_API Result<Tensors> build();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace inferential
