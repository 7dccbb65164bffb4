// The two products as the sinks of csrc/cpu call them, each alone: a group of panels of rows passes
// over every block of the packed columns. Included in the namespace of one instruction set.

class Engine final : public Products {
 public:
  // Columns are the rows of `data` [count, depth], all of them; rows are the first ones.
  Engine(const float* data, int64_t count, int64_t rows, int64_t depth)
      : matrix_(matrix_of(data, count, depth)),
        rows_(matrix_of(data, rows, depth)),
        g_(tile_geometry<float>(depth)),
        packed_(round_up(count, g_.panel_columns) * depth),
        copy_(g_.padded == depth ? 0 : round_up(count, g_.panel_columns) * g_.padded),
        norms_(round_up(count, g_.panel_columns)),
        finite_(round_up(count, g_.panel_columns)) {
    chunk_.first = 0;
    chunk_.count = count;
    chunk_.panels = packed_.data();
    chunk_.copy = g_.padded == depth ? nullptr : copy_.data();
    chunk_.rows = g_.padded == depth ? data : copy_.data();
    chunk_.norms = norms_.data();
    chunk_.finite = finite_.data();
    chunk_.pairs = nullptr;
    const int64_t wide = g_.panel_columns;
    pack_columns<float>(matrix_, g_, chunk_, 0, round_up(count, wide) / wide);
  }

  int64_t panels() const override { return round_up(rows_.rows, kTileRows) / kTileRows; }

  double seconds(Product product, int64_t begin, int64_t end, double (*now)()) const override {
    Pass pass(*this);
    double spent = 0;
    for (int64_t p = begin; p < end; p += kPanelGroup) {
      const int group = static_cast<int>(std::min<int64_t>(kPanelGroup, end - p));
      for (int q = 0; q < group; ++q) pass.load(q, p + q);
      const double start = now();
      for (int64_t j = 0; j < chunk_.count; j += g_.block) {
        for (int q = 0; q < group; ++q) pass.multiply_block(product, q, j);
      }
      spent += now() - start;
    }
    return spent;
  }

  bool right() const override {
    Pass pass(*this);
    const int q = kPanelGroup - 1;  // the last place of a group, the second block of columns
    const int64_t j = g_.block, n = std::min(g_.block, chunk_.count - j), depth = matrix_.columns;
    pass.load(q, panels() - 2);
    const float* const x = data_of(rows_) + (panels() - 2) * kTileRows * depth;
    const float* const y = data_of(matrix_) + j * depth;
    const float* const sums = pass.sums.data();
    pass.multiply_block(Product::kGradient, q, j);
    bool good = true;
    for (int r = 0; r < kTileRows; ++r) {
      for (int64_t d = 0; d < depth; ++d) {
        double sum = 0, size = 0;
        for (int64_t c = 0; c < n; ++c) {
          const double term = static_cast<double>(sums[r * kScratchStep + c]) * y[c * depth + d];
          sum += term;
          size += std::fabs(term);
        }
        good &= near(pass.gradient(q)[r * g_.padded + d], sum, size);
      }
    }
    pass.multiply_block(Product::kDistances, q, j);
    for (int r = 0; r < kTileRows; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        double sum = 0, size = 0;
        for (int64_t d = 0; d < depth; ++d) {
          const double term = static_cast<double>(x[r * depth + d]) * y[c * depth + d];
          sum += term;
          size += std::fabs(term);
        }
        good &= near(sums[r * kScratchStep + c], sum, size);
      }
    }
    return good;
  }

 private:
  // What one thread has of its own.
  struct Pass {
    const Engine& engine;
    const int64_t left_step, panel_size;
    Aligned<float> left, rows, gradients, sums;
    RowPanel<float> panel[kPanelGroup];

    explicit Pass(const Engine& e)
        : engine(e),
          left_step(left_size<float>(e.matrix_.columns)),
          panel_size(kTileRows * e.g_.padded),
          left(kPanelGroup * left_step),
          rows(kPanelGroup * panel_size),
          gradients(kPanelGroup * panel_size),
          sums(kTileRows * kScratchStep) {
      // Weights of either sign and of no round size.
      for (int64_t i = 0; i < sums.size(); ++i) {
        sums.data()[i] = 1e-3f * static_cast<float>(i * 29 % 101 - 50);
      }
      for (int q = 0; q < kPanelGroup; ++q) {
        panel[q].left = left.data() + q * left_step;
      }
    }
    // Read by nobody, so the compiler might leave out what made them.
    ~Pass() { bench::sink = sums.data()[0] + gradients.data()[0]; }

    float* gradient(int q) const { return gradients.data() + q * panel_size; }

    void load(int q, int64_t p) {
      load_panel<float>(engine.rows_, engine.g_, p * kTileRows, false, rows.data() + q * panel_size,
                        panel[q]);
    }

    void multiply_block(Product product, int q, int64_t j) {
      const Packed<float>& chunk = engine.chunk_;
      const TileGeometry& g = engine.g_;
      const int64_t n = std::min(g.block, chunk.count - j);
      if (product == Product::kDistances) {
        tile_sums<float, true>(panel[q], chunk, j, engine.matrix_.columns,
                               round_up(n, kTileColumns<float>), sums.data());
      } else {
        add_weighted_rows<float>(sums.data(), chunk.rows + j * g.padded, n, g.padded, gradient(q));
      }
    }
  };

  static Matrix matrix_of(const float* data, int64_t rows, int64_t columns) {
    return {data, rows, columns, columns, DType::kFloat32};
  }
  static const float* data_of(const Matrix& m) { return static_cast<const float*>(m.data); }
  // Errors of a chain of at most 256 roundings are within 1.6e-5 of Σ|term|.
  static bool near(double value, double sum, double size) {
    return std::fabs(value - sum) <= 2e-5 * size;
  }

  const Matrix matrix_, rows_;
  const TileGeometry g_;
  const Aligned<float> packed_, copy_, norms_;
  const Aligned<uint8_t> finite_;
  Packed<float> chunk_{};
};
