import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/**
 * Passes on each record whose Idempotency-Key was not seen within a day: a processor with a
 * persistent store and its changelog topic, as users of Kafka Streams write it.
 *
 * <p>Arguments: brokers, application id, input, output, state folder, {@code window} or
 * {@code key-value}, {@code exactly_once_v2} or {@code at_least_once}, threads.
 */
public final class Dedup {
    private static final String STORE = "seen";
    private static final Duration WINDOW = Duration.ofHours(24);

    public static void main(String[] arguments) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[1]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, Path.of(arguments[4]).toString());
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, arguments[6]);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Integer.parseInt(arguments[7]));
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
        settings.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
        settings.put("auto.offset.reset", "earliest");

        KafkaStreams streams = new KafkaStreams(topology(arguments), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(30))));
        streams.start();
    }

    private static Topology topology(String[] arguments) {
        boolean windowed = arguments[5].equals("window");
        Topology topology = new Topology();
        topology.addSource("in", Serdes.ByteArray().deserializer(),
                Serdes.ByteArray().deserializer(), arguments[2]);
        if (windowed) {
            topology.addProcessor("dedup", ByWindow::new, "in");
            StoreBuilder<WindowStore<String, Long>> store = Stores.windowStoreBuilder(
                    Stores.persistentWindowStore(STORE, WINDOW, WINDOW, false),
                    Serdes.String(), Serdes.Long());
            topology.addStateStore(store, "dedup");
        } else {
            topology.addProcessor("dedup", ByKey::new, "in");
            StoreBuilder<KeyValueStore<String, Long>> store = Stores.keyValueStoreBuilder(
                    Stores.persistentKeyValueStore(STORE), Serdes.String(), Serdes.Long());
            topology.addStateStore(store, "dedup");
        }
        topology.addSink("out", arguments[3], Serdes.ByteArray().serializer(),
                Serdes.ByteArray().serializer(), "dedup");
        return topology;
    }

    private static String identity(Record<byte[], byte[]> record) {
        Header header = record.headers().lastHeader("Idempotency-Key");
        return header == null ? null : new String(header.value(), StandardCharsets.UTF_8);
    }

    /** The window store drops whole segments when they are old. */
    private static final class ByWindow implements Processor<byte[], byte[], byte[], byte[]> {
        private ProcessorContext<byte[], byte[]> context;
        private WindowStore<String, Long> seen;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            seen = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            String identity = identity(record);
            long at = record.timestamp();
            if (identity != null) {
                try (var found = seen.fetch(identity, at - WINDOW.toMillis(), at + WINDOW.toMillis())) {
                    if (found.hasNext()) {
                        return;
                    }
                }
                seen.put(identity, at, at);
            }
            context.forward(record);
        }
    }

    /** The key-value store keeps what nobody deletes: a timer looks for what is old. */
    private static final class ByKey implements Processor<byte[], byte[], byte[], byte[]> {
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<String, Long> seen;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            seen = context.getStateStore(STORE);
            context.schedule(Duration.ofHours(1), PunctuationType.WALL_CLOCK_TIME, this::expire);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            String identity = identity(record);
            if (identity != null) {
                Long first = seen.get(identity);
                if (first != null && record.timestamp() - first < WINDOW.toMillis()) {
                    return;
                }
                seen.put(identity, record.timestamp());
            }
            context.forward(record);
        }

        private void expire(long now) {
            try (var all = seen.all()) {
                all.forEachRemaining(entry -> {
                    if (now - entry.value >= WINDOW.toMillis()) {
                        seen.delete(entry.key);
                    }
                });
            }
        }
    }
}
