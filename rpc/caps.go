package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/internal/outage"
)

const (
	// capsTimeout bounds one call of AutoCaps.
	capsTimeout = 10 * time.Second
	// capsRetry and maxCapsRetry are the first and the longest delay after a call of AutoCaps that failed.
	capsRetry    = 100 * time.Millisecond
	maxCapsRetry = 5 * time.Second
	// A message is refused only by caps that are at most freshCaps old. Older caps are first read again, because a server may have been
	// upgraded, or have started, since they were read.
	freshCaps = time.Second
)

// caps has the version caps that AutoCaps has returned, and the state of reading them.
type caps struct {
	current atomic.Pointer[knownCaps] // nil: not known
	begun   atomic.Bool               // keepCaps was started
	asked   chan struct{}             // makes keepCaps read the caps now
	flight  singleflight.Group        // shares one call of refreshCaps

	mu       sync.Mutex
	released chan struct{} // closed when the caps are known, or CapsWait has passed
	gaveUp   bool          // CapsWait has passed, and the caps are not known
	err      error         // the error of the last call of AutoCaps; nil before the first call
	ended    time.Time     // when that call ended
}

// knownCaps is one answer of AutoCaps. It is immutable.
type knownCaps struct {
	versions Versions
	at       time.Time // when the call began
}

func newCaps() *caps { return &caps{asked: make(chan struct{}, 1), released: make(chan struct{})} }

// allow reports whether a message that needs version v of the interface may be sent. The receiver k is nil while the caps are not known.
func (k *knownCaps) allow(i *Interface, v Version) bool {
	if k != nil {
		if _, named := k.versions[i.Name]; named {
			return k.versions.accepts(i.Name, v)
		}
	}
	return i.isLowest(v)
}

// releaseLocked releases the messages that wait for the caps.
func (k *caps) releaseLocked() {
	select {
	case <-k.released:
	default:
		close(k.released)
	}
}

// Allows reports whether the client may send a message that needs version v of the
// interface, so that a caller can choose an older method instead. It does not
// block. Before the client knows the answer of ClientConfig.AutoCaps, only the lowest version is allowed,
// which every server accepts.
func (c *Client) Allows(i *Interface, v Version) bool {
	if _, pinned := c.cfg.Caps[i.Name]; pinned {
		return c.cfg.Caps.accepts(i.Name, v)
	}
	return c.cfg.AutoCaps == nil || c.caps.current.Load().allow(i, v)
}

// allowed returns ErrClosed or ErrVersionCap if the client may not send the message. It waits until the client knows its caps. If
// ctx ends first, the error has the code Timeout or Canceled.
func (c *Client) allowed(ctx context.Context, i *Interface, info Info) error {
	if c.life.Err() != nil {
		return fmt.Errorf("%s: %w", info, ErrClosed)
	}
	if c.Allows(i, info.Version) && c.knowsCaps(i) {
		return nil
	}
	return c.allowedSlowly(ctx, i, info)
}

// knowsCaps reports whether Allows uses known caps, and not only the lowest version.
func (c *Client) knowsCaps(i *Interface) bool {
	_, pinned := c.cfg.Caps[i.Name]
	return pinned || c.cfg.AutoCaps == nil || c.caps.current.Load() != nil
}

// allowedSlowly does the work of allowed if the caps are not known, or do not allow the message: it may wait, and read the caps again.
func (c *Client) allowedSlowly(ctx context.Context, i *Interface, info Info) error {
	asking := ctx.Value(askingKey{}) == c
	if asking && i.isLowest(info.Version) {
		return nil
	}
	if _, pinned := c.cfg.Caps[i.Name]; !pinned && !asking && c.cfg.AutoCaps != nil {
		if err := c.awaitCaps(ctx, info); err != nil {
			return err
		}
		switch k := c.caps.current.Load(); {
		case k.allow(i, info.Version):
		case k == nil:
			c.askCaps() // for later messages
		case time.Since(k.at) > freshCaps && !c.caps.failedJustNow():
			_ = c.refreshShared(ctx) // if it fails, the last caps stay
		}
	}
	if c.Allows(i, info.Version) {
		return nil
	}
	return fmt.Errorf("%s needs version %s, %s: %w", info, info.Version, c.capText(i.Name), ErrVersionCap)
}

// capText describes the client's caps for the interface with the given name. The text is for an error.
func (c *Client) capText(name string) string {
	list, named := c.cfg.Caps[name]
	if k := c.caps.current.Load(); !named && k != nil {
		list, named = k.versions[name]
	}
	switch {
	case !named:
		return "but no server's version is known, so only the lowest version may be sent"
	case len(list) == 0:
		return "but the servers have no version in common"
	}
	return "capped at " + textOf(list)
}

// awaitCaps waits until the caps are known, or CapsWait has passed.
func (c *Client) awaitCaps(ctx context.Context, info Info) error {
	c.startCaps()
	select {
	case <-c.caps.released:
		return nil
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "%s: not sent, the version caps are not known yet: %w", info, errors.Join(ctx.Err(), c.capsError()))
	case <-c.life.Done():
		return fmt.Errorf("%s: %w", info, ErrClosed)
	}
}

// failedJustNow reports whether AutoCaps has failed within capsRetry. AutoCaps is then not called, so that many messages do not cause many
// calls.
func (k *caps) failedJustNow() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err != nil && time.Since(k.ended) < capsRetry
}

func (c *Client) capsError() error {
	c.caps.mu.Lock()
	defer c.caps.mu.Unlock()
	return c.caps.err
}

// Check implements service.Checker. It returns Unavailable from Start until the client knows its version caps, or
// ClientConfig.CapsWait has passed. It does not block.
func (c *Client) Check(context.Context) error {
	if !c.caps.begun.Load() {
		return nil
	}
	select {
	case <-c.caps.released:
		return nil
	default:
	}
	if err := c.capsError(); err != nil {
		return fault.New(fault.Unavailable, "the version caps are not known yet: %w", err)
	}
	return fault.New(fault.Unavailable, "the version caps are not known yet")
}

// Reload implements service.Reloader. It calls ClientConfig.AutoCaps now, for example after an upgrade, and waits up to 10 s for the answer.
// If AutoCaps fails, the last caps stay; Reload logs the failure as WARN and returns nil, because an error would keep other parts from
// reloading. Close ends a Reload that waits. Without AutoCaps, and after Close, Reload does nothing.
func (c *Client) Reload(ctx context.Context) error {
	if c.cfg.AutoCaps == nil || c.life.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, capsTimeout)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)() //nolint:contextcheck // Close ends it
	if err := c.refreshCaps(ctx); err != nil && c.life.Err() == nil {
		c.cfg.Logger.WarnContext(ctx, "version caps not refreshed, the last ones stay", "error", err)
	}
	return nil
}

// askingKey is a key in the context that AutoCaps gets. The value is the client that called AutoCaps.
type askingKey struct{}

// refreshCaps calls ClientConfig.AutoCaps, which must not be nil, and waits for the answer. If AutoCaps fails, refreshCaps returns its
// error, and the last caps stay.
func (c *Client) refreshCaps(ctx context.Context) error {
	defer c.startCaps()
	began := time.Now()
	got, err := c.cfg.AutoCaps(context.WithValue(ctx, askingKey{}, c), c)
	k := c.caps
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err, k.ended = err, time.Now(); err != nil {
		return fmt.Errorf("read the version caps: %w", err)
	}
	if last := k.current.Load(); last == nil || !last.at.After(began) { // otherwise a call that began later has already stored its caps
		next := &knownCaps{maps.Clone(got), began}
		k.current.Store(next)
		c.logCaps(ctx, last, next)
	}
	if k.gaveUp {
		k.gaveUp = false
		c.cfg.Logger.InfoContext(ctx, "version caps known")
	}
	k.releaseLocked()
	return nil
}

// logCaps logs the interfaces whose caps have changed.
func (c *Client) logCaps(ctx context.Context, last, next *knownCaps) {
	if last == nil {
		return
	}
	text := func(v Versions, name string) string {
		switch list, named := v[name]; {
		case !named:
			return "lowest"
		case len(list) == 0:
			return "none"
		default:
			return textOf(list)
		}
	}
	names := slices.Sorted(maps.Keys(last.versions))
	for name := range next.versions {
		if _, named := last.versions[name]; !named {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if from, to := text(last.versions, name), text(next.versions, name); from != to {
			c.cfg.Logger.InfoContext(ctx, "version caps changed", "interface", name, "from", from, "to", to)
		}
	}
}

// refreshShared does what refreshCaps does, but concurrent callers share one call of AutoCaps.
func (c *Client) refreshShared(ctx context.Context) error {
	done := c.caps.flight.DoChan("", func() (any, error) { //nolint:contextcheck // several messages wait for it
		ctx, cancel := context.WithTimeout(c.life, capsTimeout)
		defer cancel()
		ended := make(chan error, 1)
		if !c.spawn(func() { ended <- c.refreshCaps(ctx) }) { // Close waits for it
			return nil, ErrClosed
		}
		return nil, <-ended
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startCaps starts keepCaps if the client has AutoCaps and keepCaps was not started before.
func (c *Client) startCaps() {
	if c.cfg.AutoCaps != nil && c.caps.begun.CompareAndSwap(false, true) {
		c.spawn(c.keepCaps)
	}
}

// keepCaps reads the caps every CapsEvery, and sooner after a failure, until the client is closed.
func (c *Client) keepCaps() {
	defer time.AfterFunc(c.cfg.CapsWait, c.giveUpCaps).Stop()
	var log outage.Log
	failed := 0
	for {
		var err error
		if k := c.caps.current.Load(); k == nil || time.Since(k.at) > freshCaps { // otherwise Reload has just read them
			err = c.refreshShared(c.life)
		}
		if c.life.Err() != nil {
			return
		}
		next := c.cfg.CapsEvery - rand.N(c.cfg.CapsEvery/10+1)
		if failed++; err == nil {
			failed = 0
		} else {
			next = min(backoff.Exponential(failed, capsRetry, maxCapsRetry), c.cfg.CapsEvery)
		}
		if c.caps.current.Load() != nil { // before the first answer, giveUpCaps logs the error
			log.Note(c.life, c.cfg.Logger, slog.LevelWarn, "refresh of the version caps", err, false)
		}
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-c.caps.asked:
		case <-c.life.Done():
		}
		t.Stop()
	}
}

// giveUpCaps is called after CapsWait. If the caps are not known then, messages of the lowest version no longer wait for them.
func (c *Client) giveUpCaps() {
	k := c.caps
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current.Load() != nil {
		return
	}
	k.gaveUp = true
	c.cfg.Logger.Warn("version caps not known, sending only the lowest version of each interface until they are", "waited", c.cfg.CapsWait, "error", k.err)
	k.releaseLocked()
}

// noteRefusal makes the client read its caps again if a server has refused a version, because an older server must have started.
func (c *Client) noteRefusal(err error) {
	k := c.caps.current.Load()
	if k == nil || !errors.Is(err, ErrUnsupportedVersion) || time.Since(k.at) <= freshCaps {
		return
	}
	c.askCaps()
}

// askCaps makes keepCaps read the caps now, unless AutoCaps has failed within capsRetry. It does not block.
func (c *Client) askCaps() {
	if c.caps.failedJustNow() {
		return
	}
	select {
	case c.caps.asked <- struct{}{}:
	default:
	}
}
