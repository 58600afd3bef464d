// Python's way in to packed weights.
#include "bindings.h"
#include "panels.h"

namespace bindings {
namespace {

native::Stored stored_as(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kChar, "no rows of ", type, " are packed");
  return type == at::kFloat ? native::Stored::kFloat : type == at::kBFloat16 ? native::Stored::kBf16 : native::Stored::kInt8;
}

// Rows from `row` on of packed weights: of a tensor [rows, in], or those that lie at `place` (descriptor, first byte,
// rows) of a file as float32 or bfloat16. Numbers in 8 bits are made where there are scales. False if the file is too short.
bool pack_rows(const Tensor& w, const std::optional<Tensor>& scales, int64_t row, const std::optional<Tensor>& weight,
               const std::tuple<int, int64_t, int64_t>& place, bool wide) {
  check(w, "w", 3, w.scalar_type());
  const int64_t per = w.size(2) / native::kPanel, in = w.size(1) * per;
  TORCH_CHECK((per == 1 || per == 2) && w.size(2) == per * native::kPanel, "w has no panels");
  const bool narrow = per == 2;
  native::Packed to{static_cast<char*>(w.data_ptr()), nullptr, stored_as(w.scalar_type()), in, static_cast<int>(per)};
  TORCH_CHECK(to.type == native::Stored::kInt8 || (to.type == native::Stored::kBf16) == narrow, "w does not fit its type");
  const auto [file, start, count] = place;
  native::Rows rows{nullptr, file, start, count, wide ? native::Stored::kFloat : native::Stored::kBf16};
  if (weight) {
    check(*weight, "weight", 2, weight->scalar_type());
    TORCH_CHECK(weight->size(1) == in, "weight does not fit w");
    rows = {static_cast<const char*>(weight->data_ptr()), -1, 0, weight->size(0), stored_as(weight->scalar_type())};
  }
  if (scales) {
    check(*scales, "scales", 1, at::kFloat);
    TORCH_CHECK(scales->size(0) == w.size(0) * native::kPanel, "scales do not fit w");
    to.scales = data<float>(*scales);
  }
  TORCH_CHECK((to.type == native::Stored::kInt8 && rows.type != to.type) == scales.has_value(), "scales do not fit the types");
  TORCH_CHECK(rows.type != native::Stored::kInt8 || to.type == rows.type, "int8 is packed as it is");
  TORCH_CHECK(row >= 0 && rows.count >= 0 && row + rows.count <= w.size(0) * native::kPanel, "there are no such rows");
  pybind11::gil_scoped_release release;
  return native::pack(to, row, rows, narrow, threads_for(rows.count * in));
}

// Rows of packed weights in the activations' type -> out [T, in].
void unpack_rows(const Tensor& w, const Tensor& rows, const Tensor& out) {
  check_real(out);
  check(out, "out", 2, out.scalar_type());
  check(w, "w", 3, out.scalar_type());
  check(rows, "rows", 1, at::kLong);
  const int64_t per = out.scalar_type() == at::kFloat ? 1 : 2, most = w.size(0) * native::kPanel;
  TORCH_CHECK(w.size(2) == per * native::kPanel && w.size(1) * per == out.size(1), "w does not fit out");
  TORCH_CHECK(rows.size(0) == out.size(0), "rows do not fit out");
  const auto* row = data<int64_t>(rows);
  for (int64_t i = 0; i < rows.size(0); ++i) TORCH_CHECK(row[i] >= 0 && row[i] < most, "there is no such row");
  on_type(out, out.numel(), [&](auto t) {
    using T = decltype(t);
    native::each(static_cast<int>(rows.size(0)), threads_for(out.numel()), [&](int i, const native::Share&) {
      native::unpack_row<T>(data<T>(out) + i * out.size(1), w.data_ptr(), out.size(1), row[i]);
    });
  });
}

}  // namespace

void add_packing(pybind11::module_& m) {
  m.def("pack_rows", &pack_rows);
  m.def("unpack_rows", &unpack_rows);
}

}  // namespace bindings
