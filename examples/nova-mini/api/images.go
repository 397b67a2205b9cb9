package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"

	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// imageRoutes registers the images as Nova shows them until 2.35 for clients without an image service. Without a source of images there are none.
func (s *server) imageRoutes(all, _ *api.Group) {
	images := api.NewGroup(all, api.Route{Pattern: "/images", Max: "2.35", Errors: []int{unavailable}})
	api.HandleRoute(images, api.Route{Pattern: "GET", Summary: "List images", Query: imageQuery}, s.listImages)
	api.HandleRoute(images, api.Route{Pattern: "GET /detail", Summary: "List images with details", Query: imageQuery}, s.listImageDetails)
	api.HandleRoute(images, api.Route{Pattern: "GET /{id}", Summary: "Show an image", Errors: []int{notFound}}, s.showImage)
}

// imageQuery is the query of a list of images. Nova passes other parameters to the image service; here they are ignored, as by a service that does
// not know them.
var imageQuery = []api.Schema{{JSON: `{"type": "object", "properties": {"name": {"type": "array", "items": {"type": "string"}},
	"marker": {"type": "array", "items": {"type": "string"}}, "limit": {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 9}}}}`}}

type imageList[T any] struct {
	Images []T        `json:"images"`
	Links  []api.Link `json:"images_links,omitempty"`
}

type oneImage struct {
	Image imageDetail `json:"image"`
}

type imageBrief struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Links []api.Link `json:"links"`
}

type imageDetail struct {
	imageBrief

	MinRAM   int      `json:"minRam" min:"0"`
	MinDisk  int      `json:"minDisk" min:"0"`
	Metadata metadata `json:"metadata"`
	Created  string   `json:"created" format:"date-time"`
	Updated  string   `json:"updated" format:"date-time"`
	Status   string   `json:"status" enum:"ACTIVE"`
	Progress int      `json:"progress" min:"0"`
	Size     int64    `json:"OS-EXT-IMG-SIZE:size" min:"0"`
}

func briefImage(r *http.Request, is *image.Image) imageBrief {
	links := linksTo(r, "images", is.ID)
	return imageBrief{ID: is.ID, Name: is.Name, Links: append(links, api.Link{Rel: "alternate", Type: "application/vnd.openstack.image", Href: links[1].Href})}
}

func viewImage(r *http.Request, is *image.Image) imageDetail {
	out := imageDetail{
		imageBrief: briefImage(r, is), MinRAM: is.MinRAMMiB, MinDisk: is.MinDiskGiB, Metadata: is.Properties,
		Created: formatSeconds(is.Updated), Updated: formatSeconds(is.Updated), Status: "ACTIVE", Progress: 100, Size: is.Size,
	}
	if out.Metadata == nil {
		out.Metadata = metadata{}
	}
	return out
}

func imagesAs[T any](ctx context.Context, s *server, r *api.Request[api.None], view func(*http.Request, *image.Image) T) (imageList[T], error) {
	out := imageList[T]{Images: []T{}}
	list, err := s.images(ctx)
	if err != nil {
		return out, err
	}
	q := r.URL.Query()
	if q.Has("name") {
		list = slices.DeleteFunc(slices.Clone(list), func(is image.Image) bool { return is.Name != q.Get("name") })
	}
	if marker := q.Get("marker"); marker != "" {
		i := slices.IndexFunc(list, func(is image.Image) bool { return is.ID == marker })
		if i < 0 {
			return out, fault.New(fault.Invalid, "marker [%.255s] not found", marker)
		}
		list = list[i+1:]
	}
	limit := MaxLimit
	if n, err := strconv.Atoi(q.Get("limit")); err == nil { // the schema has checked the text
		limit = min(n, MaxLimit)
	}
	more := len(list) > limit
	for i := range list[:min(limit, len(list))] {
		out.Images = append(out.Images, view(r.Request, &list[i]))
	}
	if more && limit > 0 {
		out.Links = []api.Link{nextLink(r.Request, list[limit-1].ID)}
	}
	return out, nil
}

// nextLink returns the link to the page after an item.
func nextLink(r *http.Request, marker string) api.Link {
	q := r.URL.Query()
	q.Set("marker", marker)
	return api.Link{Rel: "next", Href: api.Base(r) + r.URL.Path + "?" + q.Encode()}
}

// images returns all images.
func (s *server) images(ctx context.Context) ([]image.Image, error) {
	if s.cfg.Images == nil {
		return nil, nil
	}
	return s.cfg.Images.List(ctx)
}

func (s *server) listImages(ctx context.Context, r *api.Request[api.None]) (imageList[imageBrief], error) {
	return imagesAs(ctx, s, r, briefImage)
}

func (s *server) listImageDetails(ctx context.Context, r *api.Request[api.None]) (imageList[imageDetail], error) {
	return imagesAs(ctx, s, r, viewImage)
}

func (s *server) showImage(ctx context.Context, r *api.Request[api.None]) (out oneImage, err error) {
	if s.cfg.Images == nil {
		return out, fault.New(fault.NotFound, "Image not found.")
	}
	is, err := s.cfg.Images.Get(ctx, r.PathValue("id"))
	if errors.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "Image not found.")
	}
	if err != nil {
		return out, err
	}
	return oneImage{viewImage(r.Request, is)}, nil
}

// checkImage returns an error, with Nova's text, if an image does not exist or does not fit a flavor with this memory and root disk. Without a source of images any text is
// accepted, because only the driver knows. An empty reference is no image.
func (s *server) checkImage(ctx context.Context, ref string, ramMiB, diskGiB int) error {
	if ref == "" || s.cfg.Images == nil {
		return nil
	}
	is, err := s.cfg.Images.Get(ctx, ref)
	const gib = 1 << 30
	switch {
	case errors.Is(err, fault.NotFound):
		return fault.New(fault.Invalid, "Can not find requested image")
	case err != nil:
		return err
	case is.MinRAMMiB > ramMiB:
		return fault.New(fault.Invalid, "Flavor's memory is too small for requested image.")
	case diskGiB > 0 && is.MinDiskGiB > diskGiB: // 0: the disk has the size of the image
		return fault.New(fault.Invalid, "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is %d bytes, minimum size is %d bytes.",
			diskGiB*gib, is.MinDiskGiB*gib)
	case diskGiB > 0 && is.Size > int64(diskGiB)*gib:
		return fault.New(fault.Invalid, "Flavor's disk is too small for requested image. Flavor disk is %d bytes, image is %d bytes.", diskGiB*gib, is.Size)
	}
	return nil
}
