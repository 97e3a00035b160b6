#include "inferential/client.hpp"

#include <new>
#include <utility>

#include "core.hpp"
#include "watchdog.hpp"

namespace inferential {

using detail::Core;
using detail::Draft;

namespace {

/// Applies one builder step unless an earlier one failed.
template <class Step>
void edit(const std::unique_ptr<Draft>& draft, Step&& step) noexcept {
  if (draft == nullptr || !draft->error.empty() || draft->error_code != ErrorCode::InvalidArgument) return;
  try {
    step(*draft);
  } catch (const std::bad_alloc&) {
    draft->error_code = ErrorCode::OutOfMemory;
  }
}

void add_tensor(Draft& draft, std::string_view key, DType dtype, Encoding encoding, const void* data,
                std::size_t byte_length, Shape shape, TensorOptions options) {
  auto* tensor = draft.fields.add_tensors();
  tensor->mutable_key()->assign(key);
  tensor->set_dtype(static_cast<v1::DType>(dtype));
  for (const auto dimension : shape.dimensions()) tensor->add_shape(dimension);
  tensor->set_byte_length(byte_length);
  tensor->set_timestamp_ns(options.timestamp_ns);
  tensor->set_encoding(static_cast<v1::Encoding>(encoding));
  draft.sources.push_back({data, byte_length});
  if (!wire::is_utf8(key)) {
    draft.error = "tensor key is not UTF-8";
  } else if (data == nullptr && byte_length > 0) {
    draft.error = "tensor '" + std::string(key) + "': data is a null pointer";
  } else {
    draft.error = wire::check_content(*tensor, static_cast<const std::byte*>(data));
  }
}

}  // namespace

// ---- Observation

Observation::Observation(std::shared_ptr<Core> core, std::unique_ptr<Draft> draft) noexcept
    : core_(std::move(core)), draft_(std::move(draft)) {}

Observation::Observation(Observation&&) noexcept = default;

Observation& Observation::operator=(Observation&& other) noexcept {
  std::swap(core_, other.core_);
  std::swap(draft_, other.draft_);
  return *this;
}

Observation::~Observation() {
  if (draft_ == nullptr) return;
  if (const Core::Call call(*core_); call) core_->return_draft(std::move(draft_));
}

Observation& Observation::urgency(float value) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.set_urgency(value); });
  return *this;
}

Observation& Observation::steps_remaining(std::uint32_t steps) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.set_steps_remaining(steps); });
  return *this;
}

Observation& Observation::priority(std::uint32_t level) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.set_priority(level); });
  return *this;
}

Observation& Observation::latency_budget_ms(float budget_ms) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.set_latency_budget_ms(budget_ms); });
  return *this;
}

Observation& Observation::step_ms(float duration_ms) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.set_step_ms(duration_ms); });
  return *this;
}

Observation& Observation::latest_only(bool on) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.set_latest_only(on); });
  return *this;
}

Observation& Observation::slot(std::string_view name) noexcept {
  edit(draft_, [&](Draft& draft) { draft.fields.mutable_slot()->assign(name); });
  return *this;
}

Observation& Observation::metadata(std::string_view key, std::string_view value) noexcept {
  edit(draft_, [&](Draft& draft) {
    if (!wire::is_utf8(key) || !wire::is_utf8(value)) {
      draft.error = "metadata '" + std::string(key) + "': key or value is not UTF-8";
      return;
    }
    (*draft.fields.mutable_metadata())[std::string(key)].assign(value);
  });
  return *this;
}

Observation& Observation::tensor_bytes(std::string_view key, DType dtype, const void* data, std::size_t byte_length,
                                       Shape shape, TensorOptions options) noexcept {
  edit(draft_, [&](Draft& draft) { add_tensor(draft, key, dtype, Encoding::Raw, data, byte_length, shape, options); });
  return *this;
}

Observation& Observation::tensor_encoded(std::string_view key, Encoding encoding, const void* data,
                                         std::size_t byte_length, Shape shape, TensorOptions options) noexcept {
  edit(draft_, [&](Draft& draft) {
    if (encoding == Encoding::Raw) {
      draft.error = "tensor '" + std::string(key) + "': encoding must be Jpeg or Png; tensor() is for raw elements";
      return;
    }
    add_tensor(draft, key, DType::UInt8, encoding, data, byte_length, shape, options);
  });
  return *this;
}

Result<std::uint64_t> Observation::send() noexcept {
  auto draft = std::move(draft_);
  try {
    if (draft == nullptr) {
      return Error{ErrorCode::InvalidArgument, std::nullopt, "there is nothing to send: it was sent or moved from"};
    }
    if (draft->error_code == ErrorCode::OutOfMemory) return Core::out_of_memory();
    const Core::Call call(*core_);
    if (!call) return Core::concurrent_use();
    if (!draft->model) draft->model = core_->session().model(draft->fields.model_id());
    auto sent = core_->send(*draft);
    core_->return_draft(std::move(draft));
    return sent;
  } catch (const std::bad_alloc&) {
    return Core::out_of_memory();
  }
}

// ---- Model

Model::Model(std::shared_ptr<Core> core, std::string id, ModelOptions options)
    : core_(std::move(core)),
      id_(std::move(id)),
      options_(std::move(options)),
      watchdog_(std::make_unique<detail::Watchdog>(options_.fallback, core_->pool())) {}

Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

std::string_view Model::id() const noexcept { return id_; }

std::uint32_t Model::index() {
  if (!index_) index_ = core_->session().model(id_);
  return *index_;
}

std::optional<std::uint32_t> Model::known_index() const noexcept {
  return index_ ? index_ : core_->session().find_model(id_);
}

Observation Model::observe() noexcept {
  std::unique_ptr<Draft> draft;
  try {
    if (const Core::Call call(*core_); call) {
      draft = core_->take_draft();
      draft->model = index();
    } else {
      draft = core_->new_draft();  // send() will tell whether the connection is still in use
    }
    draft->fields.mutable_model_id()->assign(id_);
    draft->fields.set_priority(options_.priority);
    draft->fields.set_latency_budget_ms(options_.latency_budget_ms);
    draft->fields.set_step_ms(options_.step_ms);
  } catch (const std::bad_alloc&) {
    draft.reset();
  }
  return Observation(core_, std::move(draft));
}

Result<Reply> Model::get_result(double timeout_ms) noexcept {
  try {
    const Core::Call call(*core_);
    if (!call) return Core::concurrent_use();
    auto message = core_->await_result(index(), timeout_ms);
    if (!message) return message.error();
    return Reply(*std::move(message));
  } catch (const std::bad_alloc&) {
    return Core::out_of_memory();
  }
}

Result<Reply> Model::next_reply(double timeout_ms) noexcept {
  try {
    const Core::Call call(*core_);
    if (!call) return Core::concurrent_use();
    auto message = core_->await_next(index(), timeout_ms);
    if (!message) return message.error();
    return Reply(*std::move(message));
  } catch (const std::bad_alloc&) {
    return Core::out_of_memory();
  }
}

Action Model::act(double timeout_ms) noexcept {
  Action none;
  try {
    const Core::Call call(*core_);
    if (!call) return watchdog_->fall_back(Core::concurrent_use(), Core::now());
    auto message = core_->await_result(index(), timeout_ms);
    if (message) return watchdog_->fresh(*std::move(message), Core::now());
    return watchdog_->fall_back(message.error(), Core::now());
  } catch (const std::bad_alloc&) {
    none.error = Core::out_of_memory();
    return none;
  }
}

bool Model::set_fallback(Fallback fallback) noexcept {
  const Core::Call call(*core_);
  if (call) watchdog_->set_fallback(std::move(fallback));
  return static_cast<bool>(call);
}

bool Model::cancel(std::uint64_t request_id) noexcept {
  try {
    const Core::Call call(*core_);
    return call && core_->cancel(index(), request_id);
  } catch (const std::bad_alloc&) {
    return false;
  }
}

double Model::take_phase_shift_ms() noexcept {
  const Core::Call call(*core_);
  const auto index = call ? known_index() : std::nullopt;
  return index ? core_->session().take_phase_shift_ms(*index) : 0;
}

std::optional<Status> Model::last_status() const noexcept {
  const Core::Glance call(*core_);
  const auto index = call ? known_index() : std::nullopt;
  return index ? core_->session().last_status(*index) : std::nullopt;
}

std::string Model::last_error() const {
  const Core::Glance call(*core_);
  const auto index = call ? known_index() : std::nullopt;
  return index ? core_->session().last_error(*index) : std::string();
}

// ---- Connection

Connection::Connection(std::shared_ptr<Core> core) noexcept : core_(std::move(core)) {}

Connection::Connection(std::string_view address, std::string_view client_id, std::string_view client_type,
                       ConnectionOptions options)
    : core_(std::make_shared<Core>(address, client_id, client_type, std::move(options))) {}

Result<Connection> Connection::open(std::string_view address, std::string_view client_id, std::string_view client_type,
                                    ConnectionOptions options) {
  auto core = std::make_shared<Core>(address, client_id, client_type, std::move(options));
  if (!core->setup_error().empty()) return Error{ErrorCode::InvalidArgument, std::nullopt, core->setup_error()};
  return Connection(std::move(core));
}

Connection::Connection(Connection&&) noexcept = default;

Connection& Connection::operator=(Connection&& other) noexcept {
  std::swap(core_, other.core_);
  return *this;
}

Connection::~Connection() {
  if (core_ != nullptr) core_->request_close();
}

Model Connection::model(std::string_view id, float latency_budget_ms, std::uint32_t priority) {
  ModelOptions options;
  options.latency_budget_ms = latency_budget_ms;
  options.priority = priority;
  return model(id, std::move(options));
}

Model Connection::model(std::string_view id, ModelOptions options) {
  return Model(core_, std::string(id), std::move(options));
}

LinkState Connection::link_state() noexcept {
  try {
    const Core::Glance call(*core_);
    if (!call) return core_->last_link_state();
    core_->pump(Core::now());
    return core_->session().link_state();
  } catch (const std::bad_alloc&) {
    return core_->last_link_state();
  }
}

bool Connection::wait_until_up(double timeout_ms) noexcept {
  try {
    const Core::Call call(*core_);
    return call && core_->await_up(timeout_ms);
  } catch (const std::bad_alloc&) {
    return false;
  }
}

Result<Reply> Connection::ping(double timeout_ms) noexcept {
  try {
    const Core::Call call(*core_);
    if (!call) return Core::concurrent_use();
    auto message = core_->ping(timeout_ms);
    if (!message) return message.error();
    return Reply(*std::move(message));
  } catch (const std::bad_alloc&) {
    return Core::out_of_memory();
  }
}

Result<Counters> Connection::counters() noexcept {
  try {
    const Core::Glance call(*core_);
    if (!call) return Core::concurrent_use();
    core_->pump(Core::now());
    return core_->session().counters();
  } catch (const std::bad_alloc&) {
    return Core::out_of_memory();
  }
}

void Connection::close() noexcept { core_->request_close(); }

}  // namespace inferential
