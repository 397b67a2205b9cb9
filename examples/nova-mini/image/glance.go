package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// GlanceConfig configures a [Glance]. The user of the session has the role admin, because it reads the images of all projects. Its Type and Version
// are set by [NewGlance].
type GlanceConfig struct {
	session.Config

	// TTL is the time for which [Glance.Get] returns an image again without a request. Default 5 s; negative: not at all.
	TTL time.Duration
	// TransferTimeout is how long no byte of an image may be transferred before the transfer fails with Unavailable. Default 1 minute.
	TransferTimeout time.Duration
	// FinishTimeout is how long the service may take after the last byte of an upload, which it then writes and verifies, before the upload fails with Unavailable. Default three times
	// TransferTimeout, and at least TransferTimeout.
	FinishTimeout time.Duration
	Logger        *slog.Logger
}

// Glance are the images of OpenStack's image service. It is a [Keeper], and is safe for concurrent use. A method blocks until the service answers, at most Timeout.
type Glance struct {
	*session.Session

	cfg GlanceConfig

	mu      sync.Mutex
	cache   map[[32]byte]cached
	forgets int // how often the cache was emptied after a change
}

type cached struct {
	image Image
	until time.Time
}

// maxCached bounds the number of images in the cache, and maxListed that of a list.
const (
	maxCached = 1000
	maxListed = 10_000
)

// NewGlance returns the images of an image service. It sends no request. Errors: those of [session.New].
func NewGlance(cfg GlanceConfig) (*Glance, error) {
	cfg.Type, cfg.Version = "image", "v2"
	cfg.TTL, cfg.TransferTimeout = cmp.Or(cfg.TTL, 5*time.Second), cmp.Or(cfg.TransferTimeout, time.Minute)
	cfg.FinishTimeout = max(cmp.Or(cfg.FinishTimeout, 3*cfg.TransferTimeout), cfg.TransferTimeout)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s, err := session.New(cfg.Config)
	return &Glance{Session: s, cfg: cfg, cache: map[[32]byte]cached{}}, err
}

// client returns a client for a token, or, if the token is empty, for the service's own user.
func (g *Glance) client(ctx context.Context, token string) (*gophercloud.ServiceClient, error) {
	c, err := g.Client(ctx, token)
	if err != nil {
		return nil, g.translate(ctx, "", err)
	}
	return c, nil
}

// translate gives an error of the image service its code. The texts are Nova's. The text of a reply is left out, because it may repeat a token.
func (g *Glance) translate(ctx context.Context, id string, err error) error {
	var reply gophercloud.ErrUnexpectedResponseCode
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.New(fault.CodeOf(ctx.Err()), "ask the image service: %w", ctx.Err())
	case !errors.As(err, &reply):
	case id != "" && reply.Actual == http.StatusNotFound:
		return fault.New(fault.NotFound, "Image %s could not be found.", id)
	case id != "" && (reply.Actual == http.StatusForbidden || reply.Actual == http.StatusUnauthorized):
		return fault.New(fault.Denied, "Not authorized for image %s.", id)
	case id != "" && reply.Actual == http.StatusConflict:
		return fault.New(fault.Conflict, "the image service refuses the change of image %s in its present state", id)
	case id != "" && (reply.Actual == http.StatusBadRequest || reply.Actual == http.StatusRequestEntityTooLarge):
		return fault.New(fault.Invalid, "Request of image %s got BadRequest response: status %d", id, reply.Actual)
	default:
		err = fmt.Errorf("%s %s is answered with status %d", reply.Method, reply.URL, reply.Actual)
	}
	g.cfg.Logger.ErrorContext(ctx, "image service failed", "image", id, "error", err)
	return fault.WithUser(fault.New(fault.Unavailable, "ask the image service: %w", err), "Connection to glance host failed: the image service is not available now.")
}

// Get implements Source. The result may be as old as TTL.
func (g *Glance) Get(ctx context.Context, token, id string) (*Image, error) {
	key := sha256.Sum256([]byte(token + "\x00" + id))
	g.mu.Lock()
	c, ok := g.cache[key]
	forgets := g.forgets
	g.mu.Unlock()
	if ok && time.Now().Before(c.until) {
		return &c.image, nil
	}
	is, err := g.get(ctx, token, id)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.cache) >= maxCached {
		clear(g.cache)
	}
	if g.cfg.TTL > 0 && is.Status == Active && g.forgets == forgets { // an image that was read before a change is not stored; another status soon changes
		g.cache[key] = cached{*is, time.Now().Add(g.cfg.TTL)}
	}
	return is, nil
}

// get asks the service for an image.
func (g *Glance) get(ctx context.Context, token, id string) (*Image, error) {
	if !isID(id) { // it would be another path
		return nil, fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	found, err := extractImage(images.Get(ctx, c, id).Result)
	if err == nil && found.ID != id {
		err = errors.New("the reply is another image")
	}
	if err != nil {
		return nil, g.translate(ctx, id, err)
	}
	return &found, nil
}

// isID reports whether a text may be the id of an image: letters, digits and hyphens.
func isID(text string) bool {
	return text != "" && len(text) <= 64 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

// List implements Source. It returns the first 10,000 images. An image that cannot be read is left out, and the log names it.
func (g *Glance) List(ctx context.Context, token string) ([]Image, error) {
	return g.list(ctx, token, images.ListOpts{Limit: 1000})
}

func (g *Glance) list(ctx context.Context, token string, of images.ListOptsBuilder) ([]Image, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return nil, err
	}
	query, err := of.ToImageListQuery()
	if err != nil {
		return nil, fault.New(fault.Internal, "list images: %w", err)
	}
	out, list := []Image{}, c.ServiceURL("images")
	pages := pagination.NewPager(c, list+query, func(r pagination.PageResult) pagination.Page { return imagePage{r, list} })
	err = pages.EachPage(ctx, func(ctx context.Context, page pagination.Page) (bool, error) {
		items, err := page.(imagePage).items() //nolint:forcetypeassert // the pager makes no other page
		for _, raw := range items {
			is, err := decodeImage(raw)
			if err != nil {
				g.cfg.Logger.WarnContext(ctx, "image left out of a list", "image", is.ID, "error", err)
				continue
			}
			out = append(out, is)
		}
		return len(out) < maxListed, err
	})
	if refused := g.Translate(ctx, c, err); errors.Is(refused, fault.Unauthenticated) || errors.Is(refused, fault.Denied) {
		return out, refused
	}
	return out, g.translate(ctx, "", err)
}

// The properties of a backup, by which it is found.
const (
	TypeProperty       = "image_type"
	BackupType         = "backup" // the value of TypeProperty
	BackupTypeProperty = "backup_type"
	ServerProperty     = "instance_uuid"
)

// backupQuery selects the backups of a server, the newest first.
type backupQuery url.Values

// ToImageListQuery implements images.ListOptsBuilder.
func (q backupQuery) ToImageListQuery() (string, error) { return "?" + url.Values(q).Encode(), nil }

// backups returns the backups of a server of a type that belong to a project, the newest first, at most 10,000.
func (g *Glance) backups(ctx context.Context, server string, r compute.Rotation) ([]Image, error) {
	list, err := g.list(ctx, "", backupQuery{
		TypeProperty: {BackupType}, BackupTypeProperty: {r.Type}, ServerProperty: {server}, "owner": {r.ProjectID}, "sort": {"created_at:desc"}, "limit": {"1000"},
	})
	return slices.DeleteFunc(list, func(is Image) bool { // a service may ignore a filter, or the case of letters
		p := is.Properties
		return is.owner != r.ProjectID || p[TypeProperty] != BackupType || p[BackupTypeProperty] != r.Type || p[ServerProperty] != server
	}), err
}

// Create implements Keeper.
func (g *Glance) Create(ctx context.Context, token string, is Image) (string, error) {
	c, err := g.client(ctx, token)
	if err != nil {
		return "", err
	}
	made, err := extractImage(images.Create(ctx, c, images.CreateOpts{
		Name: is.Name, ContainerFormat: "bare", DiskFormat: is.Format, MinDisk: is.MinDiskGiB, MinRAM: is.MinRAMMiB, Properties: is.Properties,
	}).Result)
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusForbidden), gophercloud.ResponseCodeIs(err, http.StatusUnauthorized):
		return "", fault.New(fault.Denied, "Not authorized to create an image.")
	case gophercloud.ResponseCodeIs(err, http.StatusRequestEntityTooLarge):
		return "", fault.New(fault.Denied, "Quota exceeded, too many metadata items, or too many images.")
	case gophercloud.ResponseCodeIs(err, http.StatusBadRequest):
		return "", fault.New(fault.Invalid, "the image service refuses the name or the metadata of the image")
	case err != nil:
		return "", g.translate(ctx, "", err)
	}
	return made.ID, nil
}

// Delete implements Keeper.
func (g *Glance) Delete(ctx context.Context, token, id string) error {
	if !isID(id) {
		return fault.New(fault.NotFound, "Image %s could not be found.", id)
	}
	defer g.forget()
	c, err := g.client(ctx, token)
	if err != nil {
		return err
	}
	return g.translate(ctx, id, images.Delete(ctx, c, id).ExtractErr())
}

// Discard removes an image as the service's own user. With keepActive an image with content stays. An image that does not exist is not an error. Errors: Unavailable; Denied, such as for
// a protected image; Conflict, if the image is in use.
func (g *Glance) Discard(ctx context.Context, id string, keepActive bool) error {
	var err error
	if keepActive {
		var is *Image
		if is, err = g.get(ctx, "", id); err == nil && is.Status == Active {
			return nil
		}
	}
	if err == nil {
		err = g.Delete(ctx, "", id)
	}
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// forget empties the cache.
func (g *Glance) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.cache)
	g.forgets++
}

// maxChanges is how often a change of properties is tried while other clients change the same ones.
const maxChanges = 5

// SetProperties implements Keeper. Only the properties that differ are sent, so a change of others at the same time is kept.
func (g *Glance) SetProperties(ctx context.Context, token, id string, change func(map[string]string) (map[string]string, error)) (*Image, error) {
	defer g.forget() // after the request: a read at the same time may have stored the old image
	for i := 1; ; i++ {
		is, err := g.get(ctx, token, id)
		if err != nil {
			return nil, err
		}
		to, err := change(maps.Clone(is.Properties))
		if err != nil {
			return nil, err
		}
		ops := difference(is.Properties, to)
		if len(ops) == 0 {
			return is, nil
		}
		c, err := g.client(ctx, token)
		if err != nil {
			return nil, err
		}
		changed, err := extractImage(images.Update(ctx, c, id, ops).Result)
		if err == nil {
			return &changed, nil
		}
		if err = g.translate(ctx, id, err); !errors.Is(err, fault.Conflict) || i == maxChanges {
			return nil, err
		}
	}
}

// difference returns the operations that make properties of others.
func difference(now, to map[string]string) (out images.UpdateOpts) {
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if _, stays := to[key]; !stays {
			out = append(out, images.UpdateImageProperty{Op: images.RemoveOp, Name: escapeName(key)})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(to)) {
		value, has := now[key]
		switch {
		case !has:
			out = append(out, images.UpdateImageProperty{Op: images.AddOp, Name: escapeName(key), Value: to[key]})
		case value != to[key]:
			out = append(out, images.UpdateImageProperty{Op: images.ReplaceOp, Name: escapeName(key), Value: to[key]})
		}
	}
	return out
}

// escapeName writes a name as a part of a JSON pointer (RFC 6901).
func escapeName(name string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(name) }

var _ Keeper = (*Glance)(nil)

// equalHash compares a checksum with the text of one.
func equalHash(sum []byte, text string) bool {
	return strings.EqualFold(hex.EncodeToString(sum), text)
}
