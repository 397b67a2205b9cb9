package rpc

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"
)

// caps are the versions that AutoCaps returned last.
type caps struct {
	mu      sync.Mutex
	now     map[string]Version
	at      time.Time     // when; zero: never
	running chan struct{} // closed when the call under way ends
}

// Allows reports whether the client's cap lets it send what needs version v of
// the interface, so that a caller can choose an older method instead. It goes by
// the caps that are known: before AutoCaps was called, by [Client.RefreshCaps] or
// for a first message, nothing is known of it.
func (c *Client) Allows(i *Interface, v Version) bool {
	limit, capped := c.cfg.Caps[i.Name]
	if !capped {
		c.caps.mu.Lock()
		limit, capped = c.caps.now[i.Name]
		c.caps.mu.Unlock()
	}
	return !capped || limit.Accepts(v)
}

// RefreshCaps calls ClientConfig.AutoCaps now, as after an upgrade was finished,
// and returns its error; then the last caps stay. Without AutoCaps it does
// nothing.
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

// capOf returns the cap of an interface. The first asker finds the caps out, and
// all others wait for it; later, somebody finds them out anew on the side.
func (c *Client) capOf(ctx context.Context, name string) (Version, bool, error) {
	if limit, ok := c.cfg.Caps[name]; ok || c.cfg.AutoCaps == nil {
		return limit, ok, nil
	}
	k := &c.caps
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.at.IsZero() {
		return c.firstCap(ctx, name)
	}
	if time.Since(k.at) > c.cfg.CapsEvery && k.running == nil {
		k.running = make(chan struct{})
		k.mu.Unlock()
		started := c.spawn(func() { //nolint:contextcheck // it outlives the message that finds it due
			ctx, cancel := context.WithTimeout(c.life, c.cfg.Timeout)
			defer cancel()
			err := c.RefreshCaps(ctx)
			if err != nil {
				c.cfg.Logger.Warn("the version caps stay as they are", "error", err)
			}
			c.endRefresh(err)
		})
		k.mu.Lock()
		if !started {
			k.running = nil
		}
	}
	limit, ok := k.now[name]
	return limit, ok, nil
}

// firstCap is capOf before anything is known. It is called with the lock held.
func (c *Client) firstCap(ctx context.Context, name string) (Version, bool, error) {
	k := &c.caps
	for k.at.IsZero() {
		wait := k.running
		if wait == nil {
			k.running = make(chan struct{})
			k.mu.Unlock()
			err := c.RefreshCaps(ctx)
			c.endRefresh(err)
			k.mu.Lock()
			if err != nil {
				return Version{}, false, err
			}
			continue
		}
		k.mu.Unlock()
		var err error
		select {
		case <-wait:
		case <-ctx.Done():
			err = ctx.Err()
		}
		k.mu.Lock()
		if err != nil {
			return Version{}, false, fmt.Errorf("find the version caps: %w", err)
		}
	}
	limit, ok := k.now[name]
	return limit, ok, nil
}

func (c *Client) endRefresh(err error) {
	c.caps.mu.Lock()
	defer c.caps.mu.Unlock()
	if err != nil && !c.caps.at.IsZero() {
		c.caps.at = time.Now() // tried again after CapsEvery, not by every message
	}
	close(c.caps.running)
	c.caps.running = nil
}
