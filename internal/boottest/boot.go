package boottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

const (
	emulator = "qemu-system-x86_64"
	// maxBoot bounds a boot whose context has no nearer deadline.
	maxBoot = time.Minute
	// maxOutput bounds what a guest may write before it is given up, and what
	// is kept of the emulator's messages.
	maxOutput = 64 << 10
)

// SerialChardev is the id of the character device that the first serial port
// of a machine of Args is connected to. Whoever starts the machine adds it;
// Boot does.
const SerialChardev = "serial0"

// Boot starts the machine of a domain XML in QEMU and waits until the guest
// has written want to its first serial port; then it ends the machine. It
// gives what the guest wrote so far, also with an error. The images are not
// changed. It is an error when ctx ends or a minute passes first, when the
// machine does not start or ends by itself, and when the guest writes that it
// cannot read its disk or more than 64 KiB.
func Boot(ctx context.Context, domainXML []byte, want string) (serial string, err error) {
	args, err := Args(domainXML)
	if err != nil {
		return "", err
	}
	return start(ctx, append(args, "-chardev", "stdio,signal=off,id="+SerialChardev), want)
}

var (
	errFound      = errors.New("the guest wrote what it should")
	errUnreadable = errors.New("the guest cannot read its disk")
	errTooMuch    = fmt.Errorf("the guest wrote more than %d bytes", maxOutput)
	errTime       = fmt.Errorf("the guest did not write it within %v", maxBoot)
)

// start runs the emulator with the guest's serial port on standard output.
func start(ctx context.Context, args []string, want string) (string, error) {
	path, err := exec.LookPath(emulator)
	if err != nil {
		return "", fmt.Errorf("boot: %w (Debian: qemu-system-x86)", err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ctx, cancel := context.WithTimeoutCause(ctx, maxBoot, errTime)
	defer cancel()

	serial := &watcher{want: want, stop: stop}
	messages := &watcher{stop: func(error) {}}
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // what to run is what the test is about
	cmd.Stdout, cmd.Stderr = serial, messages
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	// Run waits for both writers, so their text is complete.
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	switch out := serial.String(); {
	case errors.Is(err, errFound):
		return out, nil
	case err == nil:
		return out, fmt.Errorf("boot: the machine ended before the guest wrote %q; it wrote %q%s", want, out, messages.said())
	default:
		return out, fmt.Errorf("boot: %w: waited for %q, the guest wrote %q%s", err, want, out, messages.said())
	}
}

// watcher keeps what is written to it and calls stop when there is a reason
// to. exec.Cmd writes from one goroutine and is done when Run returns.
type watcher struct {
	text bytes.Buffer
	want string
	stop func(error)
}

func (w *watcher) Write(p []byte) (int, error) {
	w.text.Write(p[:min(len(p), maxOutput-w.text.Len())])
	switch b := w.text.Bytes(); {
	case w.want != "" && bytes.Contains(b, []byte(w.want)):
		w.stop(errFound)
	case bytes.Contains(b, []byte(failedText)):
		w.stop(errUnreadable)
	case len(b) == maxOutput:
		w.stop(errTooMuch)
	}
	// Also what is not kept is taken, so that the emulator never waits.
	return len(p), nil
}

func (w *watcher) String() string { return w.text.String() }

// said puts the emulator's messages at the end of an error.
func (w *watcher) said() string {
	if s := strings.TrimSpace(w.text.String()); s != "" {
		return "\n" + emulator + " says: " + s
	}
	return ""
}
