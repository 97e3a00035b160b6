// The C++ SDK behind the interface of adapters/native.py. A translation and no more: what the SDK does is what is tested.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "cpp/src/wire.hpp"
#include "inferential/client.hpp"

namespace py = pybind11;
using inferential::ErrorCode;

namespace {

PyObject* call_error = nullptr;

const char* code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::InvalidArgument:
      return "argument";
    case ErrorCode::Closed:
      return "closed";
    case ErrorCode::ConcurrentUse:
      return "concurrent";
    default:
      return "other";
  }
}

[[noreturn]] void raise(const inferential::Error& error) {
  PyErr_SetObject(call_error, py::make_tuple(code_of(error.code), error.message).ptr());
  throw py::error_already_set();
}

// The calls that wait let Python's other threads run.
template <class Function>
auto without_gil(Function function) {
  py::gil_scoped_release release;
  return function();
}

struct TensorValue {
  std::string key;
  inferential::DType dtype;
  std::vector<std::int64_t> shape;
  std::string data;
  inferential::Encoding encoding;
};

std::vector<TensorValue> tensors_from(const py::dict& tensors) {
  std::vector<TensorValue> found;
  for (auto [key, value] : tensors) {
    auto [dtype, shape, data, encoding] = value.cast<std::tuple<int, std::vector<std::int64_t>, py::bytes, int>>();
    found.push_back({key.cast<std::string>(), static_cast<inferential::DType>(dtype), shape, data,
                     static_cast<inferential::Encoding>(encoding)});
  }
  return found;
}

py::dict to_dict(const inferential::Tensors& tensors) {
  py::dict found;
  for (const auto& tensor : tensors) {
    std::vector<std::int64_t> shape(tensor.shape().begin(), tensor.shape().end());
    py::bytes data(reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size());
    found[py::str(std::string(tensor.key()))] = py::make_tuple(static_cast<int>(tensor.dtype()), py::tuple(py::cast(shape)), data);
  }
  return found;
}

py::dict to_dict(const inferential::Reply& reply) {
  py::dict metadata;
  for (const auto& entry : reply.metadata()) metadata[py::str(std::string(entry.key))] = std::string(entry.value);
  const auto timing = reply.timing();
  using namespace py::literals;
  return py::dict("model_id"_a = std::string(reply.model_id()), "request_id"_a = reply.request_id(),
                  "slot"_a = std::string(reply.slot()), "status"_a = static_cast<int>(reply.status()),
                  "reason"_a = static_cast<int>(reply.reason()), "error"_a = std::string(reply.error()),
                  "local"_a = reply.is_local(), "retry_after_ms"_a = reply.retry_after_ms(),
                  "phase_shift_ms"_a = reply.phase_shift_ms(), "age_ms"_a = reply.age_ms(),
                  "round_trip_ms"_a = reply.round_trip_ms(), "timestamp_ns"_a = reply.timestamp_ns(),
                  "observation_timestamp_ns"_a = reply.observation_timestamp_ns(), "queue_ms"_a = timing.queue_ms,
                  "inference_ms"_a = timing.inference_ms, "server_ms"_a = timing.server_ms,
                  "batch_size"_a = timing.batch_size, "replica"_a = std::string(timing.replica),
                  "metadata"_a = metadata, "tensors"_a = to_dict(reply.tensors()));
}

// None where the SDK says that there is no reply; a refused call is an exception.
py::object to_object(const inferential::Result<inferential::Reply>& result) {
  if (result) return to_dict(*result);
  switch (result.error().code) {
    case ErrorCode::TimedOut:
    case ErrorCode::NothingOutstanding:
    case ErrorCode::NotOk:
      return py::none();
    default:
      raise(result.error());
  }
}

std::optional<int> status_of(const inferential::Action& action) {
  if (!action.error) return static_cast<int>(inferential::Status::Ok);
  return action.error->status ? std::optional<int>(static_cast<int>(*action.error->status)) : std::nullopt;
}

// The SDK's decoder alone.
py::object decode(const py::bytes& envelope, const std::vector<py::bytes>& frames) {
  const auto frame_of = [](const py::bytes& bytes) {
    const std::string_view from = bytes;
    inferential::Frame frame(from.size());
    if (!from.empty()) std::memcpy(frame.data(), from.data(), from.size());
    return frame;
  };
  static const auto pool = std::make_shared<inferential::MessagePool>();
  auto message = pool->acquire();
  message->envelope = frame_of(envelope);
  for (const auto& frame : frames) message->payload.push_back(frame_of(frame));
  if (!inferential::wire::decode(*message)) return py::none();
  const auto request_id = message->fields.request_id();
  const inferential::Reply reply(std::move(message));
  py::dict metadata;
  for (const auto& entry : reply.metadata()) metadata[py::str(std::string(entry.key))] = std::string(entry.value);
  using namespace py::literals;
  return py::dict("request_id"_a = request_id, "status"_a = static_cast<int>(reply.status()), "metadata"_a = metadata,
                  "tensors"_a = to_dict(reply.tensors()));
}

inferential::Fallback fallback_from(const py::tuple& value) {
  const auto kind = value[0].cast<std::string>();
  const auto ms = value[1].cast<double>();
  if (kind == "callback") {
    return inferential::Fallback::callback([](const inferential::Reply* last, double) {
      const float given = last == nullptr ? 0.0f : 1.0f;
      return inferential::TensorsBuilder().add("actions", &given, 1, {1}).build().value();
    });
  }
  inferential::Tensors template_tensors;
  if (!value[2].is_none()) {
    inferential::TensorsBuilder builder;
    for (const auto& t : tensors_from(value[2].cast<py::dict>())) {
      builder.add_bytes(t.key, t.dtype, t.data.data(), t.data.size(), t.shape);
    }
    template_tensors = builder.build().value();
  }
  if (kind == "hold") return inferential::Fallback::hold(ms, template_tensors);
  if (kind == "decay") return inferential::Fallback::decay(ms, template_tensors);
  return inferential::Fallback::zero(template_tensors);
}

class Model {
 public:
  explicit Model(inferential::Model model) : model_(std::move(model)) {}

  py::tuple observe(const py::dict& tensors, const py::dict& metadata, const py::dict& options) {
    const auto values = tensors_from(tensors);
    auto observation = model_.observe();
    for (const auto& t : values) {
      if (t.encoding == inferential::Encoding::Raw) {
        observation.tensor_bytes(t.key, t.dtype, t.data.data(), t.data.size(), t.shape);
      } else {
        observation.tensor_encoded(t.key, t.encoding, t.data.data(), t.data.size(), t.shape);
      }
    }
    for (auto [key, value] : metadata) observation.metadata(key.cast<std::string>(), value.cast<std::string>());
    for (auto [name, value] : options) {
      const auto option = name.cast<std::string>();
      if (option == "urgency") {
        observation.urgency(value.cast<float>());
      } else if (option == "steps_remaining") {
        observation.steps_remaining(value.cast<std::uint32_t>());
      } else if (option == "priority") {
        observation.priority(value.cast<std::uint32_t>());
      } else if (option == "latency_budget_ms") {
        observation.latency_budget_ms(value.cast<float>());
      } else if (option == "step_ms") {
        observation.step_ms(value.cast<float>());
      } else if (option == "latest_only") {
        observation.latest_only(value.cast<bool>());
      } else if (option == "slot") {
        observation.slot(value.cast<std::string>());
      } else {
        throw py::key_error("no option " + option);
      }
    }
    const auto sent = without_gil([&] { return observation.send(); });
    if (sent) return py::make_tuple(*sent, py::none(), "");
    if (sent.error().code != ErrorCode::NotSent) raise(sent.error());
    return py::make_tuple(sent.error().request_id, static_cast<int>(inferential::Status::NotSent), sent.error().message);
  }

  py::object get_result(double timeout_ms) {
    return to_object(without_gil([&] { return model_.get_result(timeout_ms); }));
  }

  py::object next_reply(double timeout_ms) {
    return to_object(without_gil([&] { return model_.next_reply(timeout_ms); }));
  }

  std::optional<int> last_status() {
    const auto status = model_.last_status();
    return status ? std::optional<int>(static_cast<int>(*status)) : std::nullopt;
  }

  py::dict act(double timeout_ms) {
    const auto action = without_gil([&] { return model_.act(timeout_ms); });
    using namespace py::literals;
    static constexpr const char* kSources[] = {"fresh", "hold", "decay", "zero", "callback", "none"};
    return py::dict("source"_a = kSources[static_cast<int>(action.source)], "tensors"_a = to_dict(action.tensors),
                    "age_ms"_a = action.age_ms, "steps_late"_a = action.steps_late,
                    "request_id"_a = action.reply ? action.reply->request_id() : 0, "status"_a = status_of(action));
  }

  double take_phase_shift_ms() { return model_.take_phase_shift_ms(); }

  std::uint64_t pace(double hz, int ticks) {
    return without_gil([&] {
      inferential::Rate rate(hz);
      std::uint64_t missed = 0;
      for (int i = 0; i < ticks; ++i) {
        rate.delay_ms(model_.take_phase_shift_ms());
        missed += rate.sleep();
      }
      return missed;
    });
  }

  bool cancel(std::uint64_t request_id) { return model_.cancel(request_id); }

  std::vector<std::string> two_waiters(double timeout_ms) {
    std::vector<std::string> found(2);
    auto wait = [&](std::string& outcome) {
      const auto result = model_.get_result(timeout_ms);
      const bool refused = !result && result.error().code == ErrorCode::ConcurrentUse;
      outcome = result ? "reply" : refused ? "concurrent" : "none";
    };
    py::gil_scoped_release release;
    std::thread first(wait, std::ref(found[0]));
    std::thread second(wait, std::ref(found[1]));
    first.join();
    second.join();
    return found;
  }

 private:
  inferential::Model model_;
};

class Connection {
 public:
  Connection(const std::string& address, const std::string& client_id, const std::string& client_type,
             const py::dict& options) {
    inferential::ConnectionOptions settings;
    for (auto [name, value] : options) {
      const auto option = name.cast<std::string>();
      if (option == "connect_timeout_ms") {
        settings.connect_timeout_ms = value.cast<int>();
      } else if (option == "request_timeout_ms") {
        settings.request_timeout_ms = value.cast<int>();
      } else if (option == "max_message_bytes") {
        settings.max_message_bytes = value.cast<long long>();
      } else if (option == "hold_off") {
        settings.hold_off = value.cast<bool>();
      } else {
        throw py::key_error("no option " + option);
      }
    }
    auto opened = inferential::Connection::open(address, client_id, client_type, settings);
    if (!opened) raise(opened.error());
    connection_.emplace(std::move(*opened));
  }

  Model model(const std::string& id, const py::dict& options) {
    inferential::ModelOptions settings;
    for (auto [name, value] : options) {
      const auto option = name.cast<std::string>();
      if (option == "latency_budget_ms") {
        settings.latency_budget_ms = value.cast<float>();
      } else if (option == "priority") {
        settings.priority = value.cast<std::uint32_t>();
      } else if (option == "step_ms") {
        settings.step_ms = value.cast<float>();
      } else if (option == "fallback") {
        try {
          settings.fallback = fallback_from(value.cast<py::tuple>());
        } catch (const std::invalid_argument& e) {
          raise({ErrorCode::InvalidArgument, std::nullopt, e.what()});
        }
      } else {
        throw py::key_error("no option " + option);
      }
    }
    return Model(connection_->model(id, std::move(settings)));
  }

  py::object ping(double timeout_ms) {
    const auto reply = without_gil([&] { return connection_->ping(timeout_ms); });
    if (!reply) {
      if (reply.error().code == ErrorCode::InvalidArgument || reply.error().code == ErrorCode::Closed) raise(reply.error());
      return py::none();
    }
    py::dict models;
    for (const auto& entry : reply->metadata()) {
      if (entry.key.substr(0, 6) == "model:") models[py::str(std::string(entry.key.substr(6)))] = entry.value == "ready";
    }
    return py::make_tuple(reply->round_trip_ms(), std::string(reply->metadata("server")), models);
  }

  std::string link_state() {
    static constexpr const char* kStates[] = {"connecting", "up", "down", "closed"};
    return kStates[static_cast<int>(connection_->link_state())];
  }

  py::dict counters() {
    const auto counters = connection_->counters();
    if (!counters) raise(counters.error());
    const auto& c = *counters;
    using namespace py::literals;
    return py::dict("sent"_a = c.sent, "not_sent"_a = c.not_sent, "ok"_a = c.ok, "not_ok"_a = c.not_ok,
                    "late_replies"_a = c.late_replies, "bad_replies"_a = c.bad_replies, "timed_out"_a = c.timed_out,
                    "link_lost"_a = c.link_lost, "held_off"_a = c.held_off, "replies_dropped"_a = c.replies_dropped,
                    "reconnects"_a = c.reconnects);
  }

  void close() {
    without_gil([&] {
      connection_->close();
      return 0;
    });
  }

 private:
  std::optional<inferential::Connection> connection_;
};

}  // namespace

PYBIND11_MODULE(inferential_cpp, module) {
  call_error = PyErr_NewException("inferential_cpp.CallError", nullptr, nullptr);
  module.add_object("CallError", call_error);
  module.def("decode", &decode);
  module.def("version", [] { return inferential::version(); });
  py::class_<Model>(module, "Model")
      .def("observe", &Model::observe)
      .def("get_result", &Model::get_result)
      .def("next_reply", &Model::next_reply)
      .def("last_status", &Model::last_status)
      .def("act", &Model::act)
      .def("take_phase_shift_ms", &Model::take_phase_shift_ms)
      .def("pace", &Model::pace)
      .def("cancel", &Model::cancel)
      .def("two_waiters", &Model::two_waiters);
  py::class_<Connection>(module, "Connection")
      .def(py::init<const std::string&, const std::string&, const std::string&, const py::dict&>())
      .def("model", &Connection::model)
      .def("ping", &Connection::ping)
      .def("link_state", &Connection::link_state)
      .def("counters", &Connection::counters)
      .def("close", &Connection::close);
}
