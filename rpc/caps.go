package rpc

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
)

// caps are the version caps that AutoCaps returned last.
type caps struct {
	flight singleflight.Group

	mu  sync.Mutex
	now map[string]Version
	at  time.Time // when; zero: never
}

// of returns the cap of an interface, and when AutoCaps returned it. Zero: AutoCaps has not returned yet.
func (k *caps) of(name string) (limit Version, capped bool, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	limit, capped = k.now[name]
	return limit, capped, k.at
}

// Allows reports whether the client may send a message that needs version v of the
// interface, so that a caller can choose an older method instead. It does not
// block and does not call AutoCaps: until [Client.RefreshCaps] or the first message
// has done so, only ClientConfig.Caps limits the version.
func (c *Client) Allows(i *Interface, v Version) bool {
	limit, capped := c.cfg.Caps[i.Name]
	if !capped {
		limit, capped, _ = c.caps.of(i.Name)
	}
	return !capped || limit.Accepts(v)
}

// RefreshCaps calls ClientConfig.AutoCaps now, for example after an upgrade is
// finished, and waits for it. It returns the error of AutoCaps; then the last caps
// stay. Without AutoCaps it does nothing.
func (c *Client) RefreshCaps(ctx context.Context) error {
	if c.cfg.AutoCaps == nil {
		return nil
	}
	got, err := c.cfg.AutoCaps(ctx)
	if err != nil {
		return fmt.Errorf("find the version caps: %w", err)
	}
	c.caps.mu.Lock()
	defer c.caps.mu.Unlock()
	c.caps.now, c.caps.at = maps.Clone(got), time.Now()
	return nil
}

// capOf returns the cap of an interface. The first messages wait for one common call of AutoCaps. Later, a message that
// finds the caps too old starts a refresh and does not wait for it.
func (c *Client) capOf(ctx context.Context, name string) (limit Version, capped bool, err error) {
	if limit, ok := c.cfg.Caps[name]; ok || c.cfg.AutoCaps == nil {
		return limit, ok, nil
	}
	limit, capped, at := c.caps.of(name)
	if !at.IsZero() && time.Since(at) <= c.cfg.CapsEvery {
		return limit, capped, nil
	}
	done := c.caps.flight.DoChan("", func() (any, error) { //nolint:contextcheck // several messages wait for it
		ctx, cancel := context.WithTimeout(c.life, c.cfg.Timeout)
		defer cancel()
		return nil, c.refreshLogged(ctx)
	})
	if !at.IsZero() {
		return limit, capped, nil
	}
	select {
	case r := <-done:
		err = r.Err
	case <-ctx.Done():
		err = fault.New(fault.CodeOf(ctx.Err()), "find the version caps: %w", ctx.Err())
	}
	if err != nil {
		return Version{}, false, err
	}
	limit, capped, _ = c.caps.of(name)
	return limit, capped, nil
}

// refreshLogged is RefreshCaps. If it fails and earlier caps exist, they stay until the next refresh is due.
func (c *Client) refreshLogged(ctx context.Context) error {
	err := c.RefreshCaps(ctx)
	c.caps.mu.Lock()
	defer c.caps.mu.Unlock()
	if err != nil && !c.caps.at.IsZero() {
		c.caps.at = time.Now() // the next attempt is after CapsEvery, not at every message
		c.cfg.Logger.Warn("version caps not refreshed, the last ones stay", "error", err)
	}
	return err
}
