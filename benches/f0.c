/* F0: a hook that reads its input and does nothing. The minimum cost of a process on this machine. */
#include <unistd.h>

int main(void) {
    char buffer[65536];
    while (read(0, buffer, sizeof buffer) > 0) { }
    return 0;
}
