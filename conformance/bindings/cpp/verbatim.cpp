#include "inferential/client.hpp"

int main() {
#include "../../verbatim/client.cpp"
  return result ? 0 : 3;
}
