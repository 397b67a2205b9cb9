package config

import (
	"maps"
	"slices"

	"github.com/armature-go/armature/internal/text"
)

// hint names where the option could have been meant to stand.
func (l *loader) hint(section, key string) string {
	for _, other := range slices.Sorted(maps.Keys(l.options)) {
		if other != section && l.options[other][key] != nil {
			return "; it belongs to [" + other + "]"
		}
	}
	return text.Nearest(key, maps.Keys(l.options[section]))
}
