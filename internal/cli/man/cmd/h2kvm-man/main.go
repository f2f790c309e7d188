// Command h2kvm-man writes the manual pages of the three binaries into a
// folder. Their date is the day of SOURCE_DATE_EPOCH, or today.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/man"
)

func main() {
	if len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintln(os.Stderr, "usage: h2kvm-man FOLDER")
		os.Exit(2)
	}
	if err := man.WriteAll(os.Args[1], os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "h2kvm-man:", err)
		os.Exit(1)
	}
}
