package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// newLog makes the log of a monitor or a server: text lines on stderr, which is the container's veneer.log. Warnings and errors also
// go to user, the terminal of who runs it in the foreground.
func newLog(level, part string, user *os.File) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelWarn
	}
	file := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}).WithAttrs([]slog.Attr{slog.String("part", part)})
	return slog.New(&userHandler{Handler: file, user: &userStream{file: user}})
}

// userHandler shows warnings to the user, in the form of the command line's messages, beside logging them.
type userHandler struct {
	slog.Handler
	user  *userStream
	attrs []slog.Attr
}

// userStream is the user's terminal. It is not told the same twice in a row.
type userStream struct {
	file *os.File
	mu   sync.Mutex
	last string // guarded by mu
}

func (u *userStream) say(line string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if line == u.last {
		return
	}
	u.last = line
	if isTerminal(u.file) {
		line = strings.TrimSuffix(line, "\n") + "\r\n" // it may be in raw mode
	}
	u.file.WriteString(line)
}

func (h *userHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		var b strings.Builder
		b.WriteString("veneer: " + r.Message)
		add := func(a slog.Attr) bool {
			fmt.Fprintf(&b, ", %s %v", a.Key, a.Value)
			return true
		}
		for _, a := range h.attrs {
			add(a)
		}
		r.Attrs(add)
		h.user.say(b.String() + "\n")
	}
	return h.Handler.Handle(ctx, r)
}

func (h *userHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &userHandler{h.Handler.WithAttrs(attrs), h.user, append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

func (h *userHandler) WithGroup(name string) slog.Handler {
	return &userHandler{h.Handler.WithGroup(name), h.user, h.attrs}
}
