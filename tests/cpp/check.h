// The whole test framework of tests/cpp: named tests that register themselves, and checks that say
// what was expected. A .cpp here is one executable; test_cpp.py makes each SIAM_TEST a pytest item.
//
//   SIAM_TEST(zero_rounds_to_zero) { SIAM_EQUAL(float_to_half(0.0f), 0); }
//   SIAM_TEST_MAIN()
//
//   program              runs everything          program --run NAME   runs one
//   program --list       names, one a line        exit 0: passed, 1: failed, 2: no such test
#pragma once

#include <cmath>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace siamcuda::check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// A failure ends its test; the others go on.
struct Failure {
  std::string message;
};

template <class T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(17);
  if constexpr (sizeof(T) == 1) {
    text << static_cast<int>(value);
  } else {
    text << value;
  }
  return text.str();
}

[[noreturn]] inline void fail(const char* file, int line, const std::string& message) {
  throw Failure{std::string(file) + ":" + std::to_string(line) + ": " + message};
}

template <class A, class B>
void equal(const char* file, int line, const char* text, const A& got, const B& expected,
           const std::string& where) {
  if (got == expected) return;
  fail(file, line,
       std::string(text) + where + ": got " + show(got) + ", expected " + show(expected));
}

// |got − expected| ≤ tolerance · (1 + |expected|); NaN meets NaN.
inline bool is_near(double got, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::fabs(got - expected) <= tolerance * (1 + std::fabs(expected));
}

inline void near(const char* file, int line, const char* text, double got, double expected,
                 double tolerance, const std::string& where) {
  if (is_near(got, expected, tolerance)) return;
  fail(file, line,
       std::string(text) + where + ": got " + show(got) + ", expected " + show(expected) +
           " within " + show(tolerance));
}

inline bool run_one(const Test& test) {
  try {
    test.run();
    return true;
  } catch (const Failure& failure) {
    std::printf("%s: %s\n", test.name, failure.message.c_str());
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", test.name, error.what());
  }
  return false;
}

inline int run_tests(int argc, char** argv) {
  const std::string option = argc > 1 ? argv[1] : "";
  if (option == "--list") {
    for (const Test& test : tests()) std::printf("%s\n", test.name);
    return 0;
  }
  if (option == "--run" && argc == 3) {
    for (const Test& test : tests()) {
      if (argv[2] == std::string(test.name)) return run_one(test) ? 0 : 1;
    }
    std::printf("no test is called '%s'\n", argv[2]);
    return 2;
  }
  if (!option.empty()) {
    std::printf("usage: %s [--list | --run NAME]\n", argv[0]);
    return 2;
  }
  bool passed = true;
  for (const Test& test : tests()) passed = run_one(test) && passed;
  return passed ? 0 : 1;
}

}  // namespace siamcuda::check

#define SIAM_TEST(name)                                                         \
  static void test_##name();                                                    \
  static const ::siamcuda::check::Register register_##name(#name, test_##name); \
  static void test_##name()

#define SIAM_TEST_MAIN() \
  int main(int argc, char** argv) { return ::siamcuda::check::run_tests(argc, argv); }

#define SIAM_CHECK_AT(condition, where)                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      ::siamcuda::check::fail(__FILE__, __LINE__, std::string("not true: " #condition) + (where)); \
  } while (false)
#define SIAM_CHECK(condition) SIAM_CHECK_AT(condition, "")
#define SIAM_EQUAL_AT(got, expected, where) \
  ::siamcuda::check::equal(__FILE__, __LINE__, #got, got, expected, where)
#define SIAM_EQUAL(got, expected) SIAM_EQUAL_AT(got, expected, "")
#define SIAM_NEAR_AT(got, expected, tolerance, where) \
  ::siamcuda::check::near(__FILE__, __LINE__, #got, got, expected, tolerance, where)
#define SIAM_NEAR(got, expected, tolerance) SIAM_NEAR_AT(got, expected, tolerance, "")
