// Package broker has what the buses share.
package broker

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/internal/names"
)

// maxMetadata is how many bytes of metadata every broker can carry: AMQP needs them in one
// frame, of 128 KiB by default, and closes the connection of a longer one.
const maxMetadata = 64 << 10

// CheckName returns Invalid if name, with all its prefixes and suffixes, cannot be that of a topic on every
// bus.
func CheckName(name string) error {
	if wrong := names.Fault(name); wrong != "" {
		return fault.New(fault.Invalid, "topic name %.300q of %d bytes %s", name, len(name), wrong)
	}
	return nil
}

// CheckMessage returns Invalid if the bus cannot carry the message: [rpc.ErrTooLarge] if its size is above
// limit bytes and it is not a dead letter, which a broker has carried before.
func CheckMessage(m *message.Message, limit int) error {
	size := len(m.UUID)
	for k, v := range m.Metadata {
		if len(k) > names.Max {
			return fault.New(fault.Invalid, "a metadata key of %d bytes is longer than the %d bytes that a broker takes: %.40q", len(k), names.Max, k)
		}
		size += len(k) + len(v)
	}
	if len(m.UUID) > names.Max || len(m.Metadata[rpc.MetaCorrelation]) > names.Max || len(m.Metadata[rpc.MetaReplyTo]) > names.Max {
		return fault.New(fault.Invalid, "a message whose id, correlation id or reply topic is longer than the %d bytes that a broker takes", names.Max)
	}
	if size > maxMetadata {
		return fault.New(fault.Invalid, "metadata of %d bytes are larger than the %d bytes that a broker takes: %w", size, maxMetadata, rpc.ErrTooLarge)
	}
	if size += len(m.Payload); size > limit && m.Metadata[rpc.MetaReason] == "" {
		return TooLarge(size, limit)
	}
	return nil
}

// TooLarge is the error of a message of size bytes on a bus that carries limit bytes.
func TooLarge(size, limit int) error {
	return fault.New(fault.Invalid, "%w: it has %d bytes, and the limit is %d bytes", rpc.ErrTooLarge, size, limit)
}

// CheckURLs returns Invalid, with what is wrong with which URL but without its
// password, unless there is at least one and all have a host, one of the
// schemes, and no parameters.
func CheckURLs(urls []string, schemes ...string) error {
	if len(urls) == 0 {
		return fault.New(fault.Invalid, "no URL of a broker is given")
	}
	for i, raw := range urls {
		u, err := url.Parse(raw)
		switch {
		case err != nil:
			return fault.New(fault.Invalid, "URL %d of %d cannot be read; does the password have characters that must be percent-encoded?", i+1, len(urls))
		case !slices.Contains(schemes, u.Scheme):
			return fault.New(fault.Invalid, "URL %d of %d: scheme %q is not %s in %s", i+1, len(urls), u.Scheme, strings.Join(schemes, " or "), u.Redacted())
		case u.Hostname() == "":
			return fault.New(fault.Invalid, "URL %d of %d: no host in %s", i+1, len(urls), u.Redacted())
		case u.Fragment != "":
			return fault.New(fault.Invalid, "URL %d of %d has a fragment; a # in the password is %%23", i+1, len(urls))
		case u.RawQuery != "":
			name, _, _ := strings.Cut(u.RawQuery, "=")
			return fault.New(fault.Invalid, "URL %d of %d: unknown parameter %.60q", i+1, len(urls), name)
		}
	}
	return nil
}

// Redacted lists the URLs without their passwords.
func Redacted(urls ...string) string {
	out := make([]string, len(urls))
	for i, raw := range urls {
		if u, err := url.Parse(raw); err == nil {
			out[i] = u.Redacted()
		}
	}
	return strings.Join(out, ", ")
}

// Pause waits, but not beyond the end of ctx.
func Pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Backoff returns the longest wait before the next attempt to restore a connection that was lost then: an
// eighth of the time since, at least low and at most high.
func Backoff(lost time.Time, low, high time.Duration) time.Duration {
	return min(max(time.Since(lost)/8, low), high)
}
