#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <vector>

/// A test program registers cases with TEST(name) { … }. CHECK(condition, message) reports a failure and goes on;
/// the exit status of run_tests() is the number of cases that failed, of those whose names contain `part`.
namespace check {

struct Case {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline bool add_case(const char* name, std::function<void()> body) {
  cases().push_back({name, std::move(body)});
  return true;
}

inline void fail(const char* file, int line, const char* condition, const std::string& message) {
  if (++failures() <= 20) std::fprintf(stderr, "%s:%d: not %s: %s\n", file, line, condition, message.c_str());
}

inline int run_tests(const std::string& part = "") {
  int failed = 0, run = 0;
  for (const Case& test : cases()) {
    if (std::string(test.name).find(part) == std::string::npos) continue;
    ++run;
    failures() = 0;
    try {
      test.body();
    } catch (const std::exception& error) {
      fail(test.name, 0, "an exception", error.what());
    }
    std::printf("%s %s\n", failures() == 0 ? "ok    " : "FAILED", test.name);
    failed += failures() > 0;
  }
  return run > 0 ? failed : 1;
}

}  // namespace check

#define CHECK(condition, message) \
  if (!(condition)) check::fail(__FILE__, __LINE__, #condition, message)

#define TEST(name)                                                           \
  static void test_##name();                                                 \
  static const bool registered_##name = check::add_case(#name, test_##name); \
  static void test_##name()
